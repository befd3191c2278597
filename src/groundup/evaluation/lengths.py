"""How a model's predictions depend on the place in its context, and on a context longer than it was trained on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64

from groundup.config import nearest
from groundup.evaluation.perplexity import token_nats
from groundup.model import LearnedPositions, ModelConfig, Transformer
from groundup.model.rope_scaling import LinearScaling, NTKScaling, RopeScaling, YarnScaling
from groundup.tokenizer import Tokenizer

# Tokens of a batch: rows get fewer as they get longer.
BATCH_TOKENS = 4096

SCALINGS: dict[str, Callable[[float, int], RopeScaling]] = {
    "linear": lambda factor, context: LinearScaling(factor),
    "ntk": lambda factor, context: NTKScaling(factor),
    "yarn": lambda factor, context: YarnScaling(factor, context),
}
"""Ways to stretch rotary embeddings, from (factor, trained length)."""

POLICY = (
    "Documents are concatenated, each followed by end_of_text, and cut into windows of each length without overlap: a "
    "token sees all before it in its window, whatever document it is of, and the first sees the one token before it. "
    "All lengths score the same tokens; longer windows have fewer beginnings with little context."
)


@dataclass(frozen=True)
class PositionScores:
    """`nats[w, p]` is -ln p of the token at position p of window w, which is predicted from p + 1 tokens.

    `bytes` counts the UTF-8 text of all of them; an end_of_text is a token to predict, and no text.
    """

    nats: Float64[np.ndarray, "windows context"]
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        return math.fsum(self.nats.flat) / math.log(2) / self.bytes

    @property
    def bits_per_token(self) -> Float64[np.ndarray, " context"]:
        """The mean over windows at each position."""
        return self.nats.mean(0) / math.log(2)

    def bits_per_token_up_to(self, ends: Sequence[int]) -> list[float]:
        """The mean of each stretch of positions: from 0 to below ends[0], from there to below ends[1], and so on."""
        starts = [0, *ends[:-1]]
        return [float(self.bits_per_token[start:end].mean()) for start, end in zip(starts, ends, strict=True)]


def score_by_position(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    context_length: int,
    *,
    multiple: int | None = None,
) -> PositionScores:
    """Score concatenated documents in windows of `context_length` tokens that do not overlap.

    The text is cut to a whole number of windows, or of `multiple` tokens, so that other lengths can score the same.

    Raises ValueError for a text that is too short, or a context that the model has no positions for.
    """
    if (most := longest_context(model.config)) is not None and context_length > most:
        raise ValueError(f"context_length={context_length}: this model learned {most} positions, and has no others")
    if context_length < 1 or (multiple is not None and multiple % context_length):
        raise ValueError(f"context_length={context_length}: expected at least 1, and a divisor of multiple={multiple}")
    ids = concatenated(tokenizer, documents)
    whole = len(ids) - len(ids) % (multiple or context_length)
    if not whole:
        raise ValueError(
            f"scoring by position: the documents have {len(ids):,} tokens, fewer than a window of "
            f"{multiple or context_length:,}; use more text or shorter windows"
        )
    ids, end = ids[:whole], tokenizer.end_of_text
    (nats,) = token_nats(
        model, [ids], begin=end, context_length=context_length, stride=context_length,
        batch_size=max(1, BATCH_TOKENS // context_length),
    )  # fmt: skip
    return PositionScores(nats.reshape(-1, context_length), len(tokenizer.decode_bytes(ids[ids != end])))


def score_lengths(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    multiples: Sequence[int],
    *,
    scaling: str | None = None,
) -> list[PositionScores | None]:
    """Scores of the same tokens at `multiples` of the model's context length, see `POLICY`.

    `scaling` names one of `SCALINGS`, which stretches the rotary embeddings by each multiple, without training. None
    stands for a length that the model cannot read, as it learned a vector for each position.
    """
    if scaling is not None and scaling not in SCALINGS:
        raise ValueError(f"scaling {scaling!r} is unknown{nearest(scaling, SCALINGS)}")
    trained = model.config.context_length
    whole, scores = trained * math.lcm(*multiples), []
    for multiple in multiples:
        most = longest_context(model.config)
        if most is not None and trained * multiple > most:
            scores.append(None)
            continue
        read = model if scaling is None else with_scaling(model, SCALINGS[scaling](multiple, trained))
        scores.append(score_by_position(read, tokenizer, documents, trained * multiple, multiple=whole))
    return scores


def check_lengths(tokenizer: Tokenizer, documents: Sequence[str], trained: int, multiples: Sequence[int]) -> None:
    """ValueError where these documents do not fill a window of every multiple of the trained length."""
    tokens, longest = len(concatenated(tokenizer, documents)), trained * math.lcm(*multiples)
    if multiples and tokens < longest:
        raise ValueError(
            f"lengths={list(multiples)}: the held-out text has {tokens:,} tokens, and {longest:,} are the least that "
            "all of these fill; leave out the longest, or hold out and score more text"
        )


def concatenated(tokenizer: Tokenizer, documents: Sequence[str]) -> Int64[np.ndarray, " tokens"]:
    """The documents' tokens, an end_of_text after each."""
    end = tokenizer.end_of_text
    parts = [np.array([*ids, end], dtype=np.int64) for ids in tokenizer.encode_batch(documents)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def longest_context(config: ModelConfig) -> int | None:
    """The most tokens that a model can read at once; None for those without such a bound."""
    return config.positions.max_length if isinstance(config.positions, LearnedPositions) else None


def is_rotary(config: ModelConfig) -> bool:
    """Whether some layer has a rotary embedding, which can be stretched."""
    return any(getattr(block.mixer, "rope", None) is not None for block in config.blocks)


def with_scaling(model: Transformer, scaling: RopeScaling) -> Transformer:
    """A copy of the model with stretched rotary embeddings. ValueError where there are none, or they are already."""
    if not is_rotary(model.config):
        raise ValueError("rotary scaling: this model has no rotary embedding to stretch")
    blocks = []
    for block in model.config.blocks:
        rope = getattr(block.mixer, "rope", None)
        if rope is not None:
            if rope.scaling is not None:
                raise ValueError(f"rotary scaling: the model was trained with one already, {rope.scaling}")
            block = replace(block, mixer=replace(block.mixer, rope=replace(rope, scaling=scaling)))  # type: ignore[call-arg]
        blocks.append(block)
    stretched = Transformer(replace(model.config, blocks=tuple(blocks))).to(model.device)
    stretched.load_state_dict(model.state_dict())
    stretched.compute_dtype = model.compute_dtype
    return stretched.train(model.training)
