"""The rungs of the history of language models: counted ones, then neural ones of equal size."""

from dataclasses import dataclass

from groundup.accounting import count_parameters
from groundup.model import BlockConfig, LSTMConfig, ModelConfig, NeuralNgramConfig
from groundup.scaling.matching import match_parameters
from groundup.scaling.settings import AblationSettings
from groundup.scaling.variants import Variant, ladder, modern

LSTM_LAYERS = 2


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: when, by whom, and what it is here."""

    name: str
    year: int
    source: str
    what: str
    counted: bool = False


RUNGS = (
    Rung("unigram", 1948, "Shannon 1948", "token frequencies, Witten-Bell smoothing", counted=True),
    Rung("ngram", 1998, "Chen & Goodman 1998", "interpolated modified Kneser-Ney", counted=True),
    Rung("neural_ngram", 2003, "Bengio et al. 2003", "embeddings of the last tokens, one tanh layer"),
    Rung("lstm", 2014, "Hochreiter & Schmidhuber 1997; Zaremba et al. 2014 (arXiv:1409.2329)",
         f"{LSTM_LAYERS} layers, with residual connections and LayerNorm, which theirs had not"),
    Rung("gpt2017", 2017, "Vaswani et al. 2017 (arXiv:1706.03762)",
         "the Transformer's decoder: LayerNorm after the sum, ReLU, sinusoidal positions, biases"),
    Rung("gpt", 2023, "Touvron et al. 2023 (arXiv:2302.13971)",
         "Llama's block: RMSNorm before each layer, SwiGLU, rotary positions, no biases"),
)  # fmt: skip
"""Oldest first; years are those of the form that is built here."""

COMPARISONS = (
    ("neural_ngram", "ngram"), ("lstm", "neural_ngram"), ("gpt2017", "lstm"), ("gpt", "gpt2017"),
    ("lstm", "ngram"), ("gpt", "lstm"), ("gpt", "ngram"),
)  # fmt: skip
"""(rung, what it is compared with): its predecessor, then the three of the textbook's order."""


def neural_rungs(settings: AblationSettings, order: int) -> list[Variant]:
    """The trained rungs as variants, `gpt` first: it sets the number of parameters, which all others have within 1 %.

    ValueError where a rung cannot have as many, as in a model whose tables are nearly all of it, and for lengths, which
    a history has no place for.
    """
    if settings.lengths:
        raise ValueError(f"lengths={list(settings.lengths)}: a history scores no longer contexts; groundup ablate does")
    base = modern(settings)
    target = count_parameters(base).total
    old = ladder(base)[0].config
    made = {"neural_ngram": neural_ngram(settings, order), "lstm": stacked_lstm(settings), "gpt2017": old}
    what = {rung.name: rung.what for rung in RUNGS}
    variants = [Variant("gpt", base, None, what["gpt"])]
    for name, config in made.items():
        try:
            variants.append(Variant(name, match_parameters(config, target), "gpt", what[name]))
        except ValueError as error:
            raise ValueError(f"rung {name!r}: {error}; or change d_model or num_layers") from error
    return variants


def neural_ngram(settings: AblationSettings, order: int) -> ModelConfig:
    """The neural n-gram alone in its block: no norm, no feed-forward layer."""
    block = BlockConfig(NeuralNgramConfig(order, settings.d_model), None, placement="none")
    return ModelConfig(
        settings.vocab_size, settings.d_model, 1, (block,), context_length=settings.context_length, final_norm=False
    )


def stacked_lstm(settings: AblationSettings) -> ModelConfig:
    """LSTM layers, each added to its input after LayerNorm."""
    block = BlockConfig(LSTMConfig(settings.d_model), None, norm="layer")
    return ModelConfig(
        settings.vocab_size, settings.d_model, LSTM_LAYERS, (block,), context_length=settings.context_length,
        norm_bias=True,
    )  # fmt: skip
