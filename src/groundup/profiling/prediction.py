"""A training step's time and memory, before the model exists: measured on its first blocks, continued to all of them.

A model repeats its pattern of blocks. Whatever one more round of the pattern costs (forward, backward, its share of the
update, what it keeps for the backward pass) the next one costs again, so both time and memory are straight lines in the
number of rounds. Two shallow models fix the lines: one of a single round, one of just over half of all. The rest of the
step (embedding, head, loss) is in both, at its full size. The shallow models take turns, so that a machine that changes
its speed changes both. What noise is left grows on the way to all rounds: at most twofold from half of them.

Memory is what the allocator hands out, not what is resident: the profiler's record of one step. Its peak may lie in the
forward pass of a shallow model and in the update of a deep one, so each phase has a line of its own.
"""

import contextlib
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.profiler import profile

from groundup.accounting.optimizers import OptimizerName
from groundup.accounting.simulate import BACKWARD, FORWARD, UPDATE
from groundup.data.batch import Batch
from groundup.device import peak_memory_bytes, release_memory, reset_peak_memory, synchronize
from groundup.model import ModelConfig, Transformer
from groundup.optim import make_optimizer
from groundup.profiling import scopes
from groundup.profiling.attribution import TraceEvent
from groundup.profiling.recorder import activities, trace_of
from groundup.profiling.timeline import memory_event_device
from groundup.train import Run, objectives, precision, train
from groundup.train.compiling import compile_blocks
from groundup.train.rehearsal import states

# Small, so that steps on made-up tokens leave a model that can still be stepped.
LEARNING_RATE = 1e-4
WARMUP, TURNS, STEPS_PER_TURN = 2, 6, 3


@dataclass(frozen=True)
class StepSettings:
    """How a model is trained.

    recompute: whether every block's activations are computed again in the backward pass.
    compiled: whether blocks go through torch.compile.
    """

    batch_size: int
    context_length: int
    precision: Literal["fp32", "bf16"] = "fp32"
    optimizer: OptimizerName = "adamw"
    micro_batches: int = 1
    recompute: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class StepCost:
    """Seconds of a training step, and the most bytes that tensors hold in it, weights and optimizer states included."""

    seconds: float
    peak_bytes: int


class Stepper:
    """A model in training on made-up tokens, by `groundup.train` itself."""

    def __init__(self, config: ModelConfig, settings: StepSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.model = Transformer(config).to(device)
        self.model.init_weights(0)
        precision.apply(self.model, settings.precision)
        self.model.recompute = settings.recompute
        if settings.compiled:
            compile_blocks(self.model, required=True)
        more = {"muon_lr": LEARNING_RATE} if settings.optimizer == "muon_adamw" else {}
        self.optimizer = make_optimizer(settings.optimizer, self.model, lr=LEARNING_RATE, **more)
        shape = (settings.batch_size, settings.context_length + 1)
        generator = torch.Generator().manual_seed(0)
        self.batch: Batch = {"tokens": torch.randint(config.vocab_size, shape, generator=generator)}

    def seconds(self, steps: int) -> list[float]:
        """Train so many steps; the seconds of each. KeyboardInterrupt when a signal came."""
        return self._train([self.batch] * steps).step_seconds

    def peaks(self) -> dict[str, int]:
        """Train one step with a record of every allocation: phase -> most bytes at once."""
        synchronize(self.device)
        resident = sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())
        with profile(activities=activities(self.device), profile_memory=True) as profiler:
            self._train([self.batch], marked=True)
        return _peaks(trace_of(profiler)["traceEvents"], self.device.type, resident)

    def _train(self, batches: list[Batch], marked: bool = False) -> Run:
        objective = objectives.pretraining(self.model)
        with contextlib.ExitStack() as stack:
            if marked:
                objective = scopes.marked(objective, FORWARD)
                stack.enter_context(scopes.marked_method(self.optimizer, "step", UPDATE))
            run = train(
                self.model, batches, objective, self.optimizer, len(batches),
                micro_batches=self.settings.micro_batches, progress=False, lookahead=0,
            )  # fmt: skip
        if run.stopped_by == "interrupt":
            raise KeyboardInterrupt
        return run

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield from states(self.optimizer)


@dataclass(frozen=True)
class Prediction:
    """What two shallow models cost, by their rounds of the block pattern, and what follows for `rounds`."""

    rounds: int
    seconds: dict[int, float]
    peaks: dict[int, dict[str, int]]

    @property
    def cost(self) -> StepCost:
        """Of the whole model."""
        peaks = (
            self._continued({n: self.peaks[n][phase] for n in self.peaks}) for phase in (FORWARD, BACKWARD, UPDATE)
        )
        return StepCost(self._continued(self.seconds), round(max(peaks)))

    def _continued(self, values: dict[int, float]) -> float:
        """The straight line through the values of two depths, at all rounds."""
        few, many = min(values), max(values)
        if few == many:
            return values[few]
        return values[few] + (values[many] - values[few]) * (self.rounds - few) / (many - few)


def predict_step(config: ModelConfig, settings: StepSettings, device: torch.device) -> Prediction:
    """Measure two shallow models in turns.

    Raises ValueError for a depth that is no whole number of rounds of the config's blocks.
    """
    pattern = len(config.blocks)
    if config.num_layers % pattern:
        raise ValueError(f"num_layers={config.num_layers}: expected a multiple of the {pattern} blocks that repeat")
    rounds = config.num_layers // pattern
    depths = sorted({1, rounds // 2 + 1})
    steppers = {n: Stepper(replace(config, num_layers=n * pattern), settings, device) for n in depths}
    seconds: dict[int, list[float]] = {n: [] for n in depths}
    for stepper in steppers.values():
        stepper.seconds(WARMUP)
    for _ in range(TURNS):
        for n, stepper in steppers.items():
            seconds[n] += stepper.seconds(STEPS_PER_TURN)
    peaks = {n: stepper.peaks() for n, stepper in steppers.items()}
    del steppers, stepper
    release_memory()
    return Prediction(rounds, {n: undisturbed(values) for n, values in seconds.items()}, peaks)


def perform(config: ModelConfig, settings: StepSettings, device: torch.device, steps: int = 18) -> StepCost:
    """The same figures, measured on the whole model: on a GPU, memory is its allocator's own maximum."""
    stepper = Stepper(config, settings, device)
    stepper.seconds(WARMUP)
    reset_peak_memory(device)
    seconds = undisturbed(stepper.seconds(steps))
    if device.type == "cuda":
        return StepCost(seconds, peak_memory_bytes(device))
    return StepCost(seconds, max(stepper.peaks().values()))


def undisturbed(seconds: list[float]) -> float:
    """The mean of the faster half: whatever else runs on a machine only ever adds time.

    >>> undisturbed([2.0, 1.0, 9.0, 1.5])
    1.25
    """
    ordered = sorted(seconds)
    return statistics.mean(ordered[: (len(ordered) + 1) // 2])


def _peaks(events: Iterable[TraceEvent], device_type: str, resident: int) -> dict[str, int]:
    """The most bytes in each phase, from a trace of one step; what is in no other phase is the backward pass."""
    spans = [(e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e.get("name", "").startswith(scopes.PREFIX)]
    peaks = {FORWARD: resident, BACKWARD: resident, UPDATE: resident}
    now = resident
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        if event["args"]["Device Type"] != memory_event_device(device_type):
            continue
        now += event["args"]["Bytes"]
        inside = (name for start, end, name in spans if start <= event["ts"] <= end)
        phase = next(inside, scopes.PREFIX + BACKWARD).removeprefix(scopes.PREFIX)
        peaks[phase] = max(peaks[phase], now)
    return peaks
