"""The steps themselves: of `groundup.train`, and of prefill and decode as the engine runs them."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from groundup.data.batch import Batch
from groundup.inference.sampling import SamplingParams, new_generator, sample
from groundup.model import Transformer
from groundup.optim import make_optimizer
from groundup.profiling.groups import DATA, HEAD
from groundup.profiling.recorder import Recorder
from groundup.profiling.scopes import mark, marked, marks
from groundup.profiling.settings import ProfileSettings
from groundup.train import objectives, train
from groundup.train.rehearsal import states

# Small, so that steps on made-up tokens leave a model that can still be stepped.
LEARNING_RATE = 1e-4


def record(
    model: Transformer, settings: ProfileSettings, context_length: int, batches: Iterable[Batch] | None = None
) -> Recorder:
    """Run and record the steps of a phase. `batches` for training come from there, else from a generator."""
    if settings.phase == "train":
        return _record_training(model, settings, batches or _made_up(model, settings.batch_size, context_length))
    return _record_inference(model, settings, context_length)


def _made_up(model: Transformer, batch_size: int, context_length: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    while True:
        shape = (batch_size, context_length + 1)
        yield {"tokens": torch.randint(model.config.vocab_size, shape, generator=generator)}


def _record_training(model: Transformer, settings: ProfileSettings, batches: Iterable[Batch]) -> Recorder:
    """`groundup.train`, which draws its next batch when all before is done: there one step ends and the next begins."""
    more = {"muon_lr": LEARNING_RATE} if settings.optimizer == "muon_adamw" else {}
    optimizer = make_optimizer(settings.optimizer, model, lr=LEARNING_RATE, **more)
    recorder = Recorder(model.device, partial(marks, model, optimizer), settings.steps, settings.warmup)
    objective = marked(objectives.pretraining(model), HEAD)
    try:
        run = train(
            model, _between(recorder, iter(batches)), objective, optimizer, None, progress=False, lookahead=0
        )  # fmt: skip
    finally:
        recorder.close()
    if run.stopped_by == "interrupt":
        raise KeyboardInterrupt
    recorder.steady_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *states(optimizer)))
    return recorder


def _between(recorder: Recorder, batches: Iterator[Batch]) -> Iterator[Batch]:
    while recorder.go_on():
        with mark(DATA):
            batch = next(batches)
        yield batch


@torch.no_grad()
def _record_inference(model: Transformer, settings: ProfileSettings, context_length: int) -> Recorder:
    recorder = Recorder(model.device, partial(marks, model), settings.steps, settings.warmup)
    was_training = model.training
    model.eval()
    make = _prefill if settings.phase == "prefill" else _decode
    step = make(model, settings.batch_size, context_length, len(recorder.turns))
    try:
        while recorder.go_on():
            step()
    finally:
        recorder.close()
        model.train(was_training)
    return recorder


def _prefill(model: Transformer, batch_size: int, context_length: int, steps: int) -> Callable[[], Tensor]:
    """Prompts through an empty cache; the last token's logits, and one token drawn from them."""
    tokens = next(_made_up(model, batch_size, context_length - 1))["tokens"].to(model.device)

    def step() -> Tensor:
        hidden = model.hidden(tokens, caches=model.new_caches(context_length))
        return _choose(model, hidden)

    return step


def _decode(model: Transformer, batch_size: int, context_length: int, steps: int) -> Callable[[], Tensor]:
    """One more token per row, on caches that were filled so far that the steps lie around `context_length`."""
    filled = max(1, context_length - 1 - steps // 2)
    tokens = next(_made_up(model, batch_size, filled - 1))["tokens"].to(model.device)
    caches = model.new_caches(filled + steps)
    latest = [_choose(model, model.hidden(tokens, caches=caches))]

    def step() -> Tensor:
        latest[0] = _choose(model, model.hidden(latest[0][:, None], caches=caches))
        return latest[0]

    return step


def _choose(model: Transformer, hidden: Tensor) -> Tensor:
    logits = model.logits(hidden[:, -1])
    with mark(HEAD):
        rows = len(logits)
        tokens = sample(logits.detach(), [SamplingParams(temperature=0)] * rows, [new_generator(0)] * rows)
        return torch.tensor(tokens, device=logits.device)
