"""The chat stage: a copy of the model learns turns and endings from passages of its own text."""

from collections.abc import Sequence
from pathlib import Path

from groundup import data, optim, train
from groundup.accounting.plan import TrainingPlan
from groundup.build.chat import examples
from groundup.build.pretrain import make_optimizer
from groundup.model import Transformer
from groundup.tokenizer import Tokenizer
from groundup.train import objectives

RATE_SHARE = 0.3
WARMUP_STEPS = 5
MOST_EPOCHS = 2.0


def tune_for_chat(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    made: TrainingPlan,
    *,
    seed: int,
    deadline: float,
) -> train.Run | None:
    """Train `model` on conversations until the deadline or two passes over them; None when the text gives none.

    The loss counts the answers and their ends only. Rates are a part of pretraining's: the model should learn a
    form, not forget its language.
    """
    made_examples = examples(documents, tokenizer, made.model.context_length, seed)
    if not made_examples:
        return None
    source = data.Conversations(
        made_examples, made.batch_size, made.model.context_length, tokenizer.end_of_text, seed,
        vocab_size=made.model.vocab_size,
    )  # fmt: skip
    optimizer = make_optimizer(model, made, RATE_SHARE)
    steps = max(1, round(MOST_EPOCHS * source.rows_per_epoch / made.batch_size))
    decay = optim.ClockDecay(min(WARMUP_STEPS, max(1, steps // 4)), decay_fraction=0.5)
    run = train.train(
        model, source, objectives.next_token, optimizer, steps,
        schedule=decay, deadline=deadline, progress=True, micro_batches=train.AtLeast(made.micro_batches),
    )  # fmt: skip
    if run.stopped_by == "interrupt":  # half tuned is not tuned: a resumed build does it again
        raise KeyboardInterrupt
    return run


def documents_of(shards_folder: Path, tokenizer: Tokenizer, most_tokens: int) -> list[str]:
    """Texts decoded from the head of the training shards: what chat tuning needs when the sources are gone."""
    shards = data.ShardSet.open(shards_folder)
    ids = shards.read(0, min(most_tokens, shards.num_tokens)).tolist()
    documents: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.end_of_text:
            documents.append([])
        else:
            documents[-1].append(token)
    return [tokenizer.decode(d) for d in documents if d]
