"""`train`: the one call, its options and what is checked before the loop begins."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from groundup.data.batch import Batch
from groundup.device import keep_memory
from groundup.optim.schedule import ClockDecay
from groundup.parallel.engine import Engine
from groundup.parallel.straggler import Stragglers
from groundup.train import divided, resources
from groundup.train.compiling import compile_blocks
from groundup.train.feed import Feed
from groundup.train.guard import Guard
from groundup.train.log import MetricsLog, Sink
from groundup.train.loop import Hook, Training
from groundup.train.noise import NoiseScale
from groundup.train.objectives import vocabularies
from groundup.train.pace import Pace
from groundup.train.progress import ProgressLine
from groundup.train.ranks import is_main, world_size
from groundup.train.recorder import Recorder
from groundup.train.resume import Resumable, Saver
from groundup.train.room import AtLeast, Memory
from groundup.train.run import Run
from groundup.train.scaler import LossScaler
from groundup.train.snapshot import fingerprint
from groundup.train.step import Objective

SLOW_WINDOW = 10
"""Updates over which ranks' times are compared; a slow rank is named after two such windows."""


def train(
    model: nn.Module,
    source: Iterable[Batch],
    objective: Objective,
    optimizer: Any,
    steps: int | None,
    *,
    schedule: Callable[[int], float] | None = None,
    micro_batches: int | AtLeast | Literal["auto"] = 1,
    batches_per_step: int | Callable[[int], int] = 1,
    clip: float | None = 1.0,
    every: dict[int, Hook] | None = None,
    run_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    keep: int = 3,
    save_in_background: bool = False,
    resume: bool | str | Path = False,
    deadline: float | None = None,
    stop: Callable[[], bool] | None = None,
    guard: Guard | None = None,
    scaler: LossScaler | None = None,
    log_every: int = 10,
    sinks: Sequence[Sink] = (),
    progress: bool = True,
    compile: bool | Literal["auto"] = False,
    flops_per_token: float | None = None,
    peak_flops: float | None = None,
    config: dict[str, Any] | None = None,
    lookahead: int | None = None,
    watch_seconds: float | None = resources.SECONDS,
    recorder: Recorder | bool = True,
    engine: Engine | None = None,
) -> Run:
    """Train until `steps` updates were made, the deadline nears, a signal comes, or the source ends.

    Ctrl-C or SIGTERM finish the step and save; a second one stops at once.

    schedule: step number (from 0) -> multiplier of each group's rate; a `ClockDecay` is fed the time left.
    micro_batches: parts that each batch is cut into, for memory; the gradient is the same. "auto": the fewest that fit
    into the free memory by `rehearse`; a step that does not fit after all is repeated with twice as many.
    batches_per_step: batches from the source per update, fixed or by step number (a batch-size ramp).
    every: {n: hook}; hook(step, model, run) runs after every n-th update.
    run_dir: gets metrics.jsonl and checkpoints/ (every `checkpoint_every` updates and at the end).
    save_in_background: a save holds training up while it copies weights and states in memory, which stays taken; a
    thread writes the copy. The last save is waited for. For one process.
    resume: True continues from the newest whole checkpoint of run_dir (or starts, when there is none); a path
    continues from that checkpoint. The result is what an uninterrupted run gives, to the bit on a CPU.
    deadline: a reading of `time.monotonic()` by which to be done.
    compile: True compiles the model's blocks or fails; "auto" tries.
    flops_per_token, peak_flops: the training cost of a token and the machine's rate, for the logged MFU.
    config: anything JSON that a resume must find unchanged (beside the model, optimizer and source).
    scaler: of the loss, for fp16; a model that computes in fp16 gets one if none is given. Steps that overflow make no
    update and are counted in `Run.overflows`.
    lookahead: updates queued on the device before the first's loss is read: 1 on CUDA, 0 elsewhere. A bad
    step is then undone on the device, and the batches queued after it are run again.
    watch_seconds: between two looks at what the run uses of its machine, in run_dir/resources.jsonl (None: no looks).
    recorder: of norms by layer, in run_dir/flight.jsonl; True is one with a record each `log_every` updates if there is
    a run_dir, which is also what a bad step is held against (see `diagnosis`).
    engine: of `parallel.engines.engine_for`, whose model and optimizer these are; the source gives a rank the rows of
    engine.mesh.rows out of engine.mesh.row_parts. Checkpoints hold whole tensors and fit any plan on either engine, and
    one process.
    Then the noise scale is not measured, a recorder works where each rank has whole gradients only (plans of data and
    context), a bad step is not run again to be explained, and memory that runs out ends the run.

    Raises ValueError for options that do not fit together or a checkpoint that does not fit, FloatingPointError when
    bad steps do not end (see `Guard`), and OutOfMemory, which says what held the memory and what would fit. The last
    checkpoint is then as it was.
    """
    if isinstance(schedule, ClockDecay) and deadline is None:
        raise ValueError("train: a ClockDecay schedule decays towards a deadline; give one")
    if (resume is True or checkpoint_every is not None) and run_dir is None:
        raise ValueError("train: resume=True and checkpoint_every need a run_dir")
    if save_in_background:
        _refuse_many_ranks(engine)
    if engine is not None:
        divided.refuse(engine, model, optimizer, micro_batches, recorder)
    if compile:
        compile_blocks(model, required=compile is True)
    device = next(model.parameters()).device
    if device.type == "cpu":
        keep_memory()
    feed = Feed(source, device, vocabularies(model) if engine is None else divided.vocabularies(engine))
    facts = fingerprint(model, optimizer if engine is None else engine.inner(), source, config)
    parts = Resumable(
        model, optimizer, schedule, feed, guard or Guard(), facts, Run(), NoiseScale(), Memory(micro_batches),
        _scaler(scaler, model, device), engine,
    )  # fmt: skip
    training = Training(
        parts=parts,
        saver=Saver(run_dir, checkpoint_every, keep, save_in_background),
        pace=Pace(deadline),
        objective=objective,
        steps=steps,
        batches_per_step=batches_per_step,
        clip=float("inf") if clip is None else clip,
        every=every or {},
        stop=stop,
        log_every=log_every,
        lookahead=_lookahead(lookahead, optimizer, device),
        device=device,
        flops_per_token=flops_per_token,
        peak_flops=peak_flops,
    )
    training.continue_from(training.saver.find(resume))
    log_dir = run_dir if is_main() else None
    able = engine is None or divided.has_whole_gradients(engine)
    _follow(training, log_dir, _recorder(recorder, run_dir) if able else None, sinks, progress)
    if log_dir is None or watch_seconds is None:
        return training.loop()
    with resources.Monitor(
        Path(log_dir) / "resources.jsonl", device, training.where, watch_seconds
    ) as training.monitor:
        return training.loop()


def _refuse_many_ranks(engine: Engine | None) -> None:
    if world_size() > 1 or engine is not None:
        raise ValueError(
            "train: save_in_background is for one process, as other ranks would not know which checkpoints are whole; "
            "from many ranks, `parallel.ShardedSaver` saves in the background"
        )


def _scaler(wanted: LossScaler | None, model: nn.Module, device: torch.device) -> LossScaler | None:
    if wanted is None and getattr(model, "compute_dtype", None) == torch.float16:
        wanted = LossScaler()
    return None if wanted is None else wanted.to(device)


def _follow(
    training: Training, log_dir: str | Path | None, recorder: Recorder | None, sinks: Sequence[Sink], progress: bool
) -> None:
    """Give the run what tells of it. The first rank writes; on CPUs the ranks' times are compared."""
    step = training.run.step
    training.log = MetricsLog(log_dir, from_step=step, sinks=sinks if is_main() else ())
    training.recorder = recorder
    if recorder is not None:
        recorder.open(log_dir, training.log_every, step)
    # On a GPU the host only launches the work.
    if world_size() > 1 and training.engine is None and training.device.type == "cpu":
        training.stragglers = Stragglers(SLOW_WINDOW)
    training.progress = ProgressLine() if progress and is_main() else None


def _recorder(wanted: Recorder | bool, run_dir: str | Path | None) -> Recorder | None:
    if isinstance(wanted, Recorder):
        return wanted
    return Recorder() if wanted and run_dir is not None else None


def _lookahead(wanted: int | None, optimizer: Any, device: torch.device) -> int:
    able = getattr(optimizer, "supports_skip", False)
    if wanted and not able:
        name = type(optimizer).__name__
        raise ValueError(f"train: lookahead={wanted}, but {name}.step takes no `skip`; use lookahead=0")
    return wanted if wanted is not None else int(device.type == "cuda" and able)
