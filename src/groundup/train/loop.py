"""One loop. A method is a source of batches and an objective; nothing else differs. `api.py` is the way in."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundup.data.batch import Batch
from groundup.device import peak_memory_bytes, random_state, set_random_state
from groundup.model.balance import update_biases
from groundup.optim.schedule import ClockDecay
from groundup.parallel.straggler import Stragglers
from groundup.train import checkpoint, diagnosis, resources
from groundup.train.feed import count_tokens, split
from groundup.train.guard import first_non_finite
from groundup.train.interrupt import Interrupt, catch_signals
from groundup.train.log import MetricsLog
from groundup.train.pace import Pace
from groundup.train.progress import ProgressLine
from groundup.train.ranks import is_main, largest_over_ranks, world_size
from groundup.train.recorder import Recorder, Sheet
from groundup.train.resume import Resumable, Saver
from groundup.train.run import Ending, Run
from groundup.train.shortage import OPTIMIZER_STEP, Rehearsals, autopsy, held_bytes, shortage_of
from groundup.train.step import Objective, PendingValues, StepValues, compute_gradients

logger = logging.getLogger("groundup.train")

Hook = Callable[[int, nn.Module, Run], Any]


@dataclass
class _Queued:
    """A step on the device whose values the host has not read."""

    group: list[Batch]
    values: PendingValues
    threshold: float
    rate: float
    rng: list[Tensor]
    begun: list[Tensor]  # the generators after the batch was drawn
    sheet: Sheet | None


@dataclass
class Training:
    """One call of `train`. Steps are launched onto a queue and settled from its other end."""

    parts: Resumable
    saver: Saver
    pace: Pace
    objective: Objective
    steps: int | None
    batches_per_step: int | Callable[[int], int]
    clip: float
    every: dict[int, Hook]
    stop: Callable[[], bool] | None
    log_every: int
    lookahead: int
    device: torch.device
    flops_per_token: float | None
    peak_flops: float | None
    recorder: Recorder | None = None
    stragglers: Stragglers | None = None

    def __post_init__(self) -> None:
        self.model, self.optimizer, self.run = self.parts.model, self.parts.optimizer, self.parts.run
        self.engine = self.parts.engine
        self.feed, self.guard, self.memory = self.parts.feed, self.parts.guard, self.parts.memory
        self.queue: deque[_Queued] = deque()
        self.poisoned = torch.zeros((), device=self.device)
        self.ended = False
        self.last_good: list[Batch] | None = None
        self.interrupt = Interrupt()
        self.log = MetricsLog(None)
        self.progress: ProgressLine | None = None
        self.monitor: resources.Monitor | None = None
        for group in self.optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])

    def continue_from(self, path: Path | None) -> None:
        if path is None:
            return
        saved = checkpoint.load(path)
        self.parts.restore(saved)
        self.saver.last_step = self.run.step if path.parent == self.saver.folder else -1
        if (threads := saved.state["threads"]) != torch.get_num_threads():
            logger.warning(
                "saved with %d threads, resumed with %d: last bits may differ",
                threads,
                torch.get_num_threads(),
            )

    def where(self) -> tuple[int, float]:
        """(step, seconds spent waiting for data)."""
        return self.run.step, self.feed.waited

    def loop(self) -> Run:
        was_training, before, begun = self.model.training, self.run.seconds, time.monotonic()
        self.model.train()
        self.forget_gradients()
        try:
            with catch_signals() as self.interrupt:
                while (reason := self.reason_to_end()) is None or self.queue:
                    if reason is None:
                        self.launch()
                    while self.queue and (reason is not None or self.must_settle()):
                        self.run.seconds = before + time.monotonic() - begun
                        self.settle()
                self.run.stopped_by, self.run.epochs = reason, self.feed.epochs
                self.run.peak_memory_bytes = peak_memory_bytes(self.device)
                self.run.micro_batches = self.memory.micro_batches
                self.parts.check_copies()
                self.saver.save(self.parts, self.log)
                self.saver.finish(self.parts, self.log)
        finally:
            self.close(was_training)
        return self.run

    def close(self, was_training: bool) -> None:
        self.saver.close()
        self.log.close()
        if self.progress is not None:
            self.progress.close()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"]
        self.model.train(was_training)

    def reason_to_end(self) -> Ending | None:
        """Why no further step may begin; the same answer on every rank."""
        if self.feed.owes:
            return None
        asked = self.interrupt.requested or (self.stop is not None and self.stop())
        asked_anywhere, *pace = largest_over_ranks([float(asked), *self.pace.measure()], self.device)
        self.pace.agree(*pace)
        if asked_anywhere:  # before the count: whoever asks during the last step wants what follows to stop too
            return "interrupt"
        if self.steps is not None and self.run.step + len(self.queue) >= self.steps:
            return "steps"
        if self.pace.out_of_time():
            return "clock"
        return "data" if self.ended else None

    def launch(self) -> None:
        """Queue a step: everything up to the point where the host would have to look at its values."""
        step = self.run.step + len(self.queue)
        count = self.batches_per_step(step) if callable(self.batches_per_step) else self.batches_per_step
        rng = random_state(self.device)
        group = self.feed.take(count)
        if group is None:
            self.ended = True
            return
        rate = self.set_rates(step)
        begun = random_state(self.device)
        sheet = None if self.recorder is None else self.recorder.begin(self.model, step + 1)
        with sheet or contextlib.nullcontext():
            vector, names = self.gradients(group)
        if sheet is not None:
            sheet.take_gradients(vector[1], self.clip)
        threshold = float(torch.tensor(self.guard.threshold(), dtype=vector.dtype))
        if self.lookahead:
            overflow = vector[-1] if self.parts.scaler is not None else torch.zeros_like(vector[0])
            bad = (~torch.isfinite(vector[:2]).all() | (vector[0] > threshold)) & (overflow == 0)
            self.poisoned = torch.maximum(self.poisoned, bad.float()) if self.queue else bad.float()
            self.update(group, skip=torch.maximum(self.poisoned, overflow.float()))
            if sheet is not None:
                sheet.take_update()
            if self.parts.scaler is not None:
                self.parts.scaler.update(overflow, skip=self.poisoned)
        self.queue.append(_Queued(group, PendingValues(vector, names), threshold, rate, rng, begun, sheet))

    def gradients(self, group: list[Batch]) -> tuple[Tensor, list[str]]:
        """As many attempts as it takes micro-batches, if their number is free."""
        self.memory.choose(self.rehearsals(group))
        while True:
            rng, held = random_state(self.device), held_bytes(self.device)
            micro = [part for batch in group for part in split(batch, self.memory.micro_batches)]
            try:
                return compute_gradients(
                    self.model, self.objective, micro, self.clip, self.parts.scaler, self.engine,
                    None if self.stragglers is None else self.stragglers.work(),
                )  # fmt: skip
            except (RuntimeError, MemoryError) as error:
                shortage = shortage_of(error, grown=held_bytes(self.device) - held)
                if shortage is None or self.engine is not None:  # the other ranks are in the midst of the step
                    raise
            # Only here has the error gone, and with it every frame that held activations.
            self.forget_gradients()
            set_random_state(rng, self.device)
            text = self.memory.give_way(shortage, self.run.step + len(self.queue) + 1, self.rehearsals(group))
            self.log.event(self.run.step + len(self.queue) + 1, "out of memory", text)

    def update(self, group: list[Batch], **skip: Tensor) -> None:
        try:
            self.optimizer.step(**skip)
        except (RuntimeError, MemoryError) as error:
            if (shortage := shortage_of(error, OPTIMIZER_STEP)) is None or self.engine is not None:
                raise
        else:
            update_biases(self.model, **skip)
            self.forget_gradients()
            return
        self.forget_gradients()
        raise autopsy(shortage, self.run.step + len(self.queue) + 1, self.memory.micro_batches, self.rehearsals(group))

    def forget_gradients(self) -> None:
        if self.engine is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self.engine.zero_grad()

    def rehearsals(self, group: list[Batch]) -> Rehearsals:
        return Rehearsals(self.model, self.objective, self.optimizer, group, self.clip)

    def set_rates(self, step: int) -> float:
        schedule = self.parts.schedule
        if isinstance(schedule, ClockDecay):
            schedule.observe(step, self.pace.seconds_left, self.pace.seconds_per_step)
        multiplier = 1.0 if schedule is None else schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * multiplier
        return self.optimizer.param_groups[0]["lr"]

    def must_settle(self) -> bool:
        """Whether the queue is full, or its last step is one after which somebody looks at the model."""
        if len(self.queue) > self.lookahead:
            return True
        last = self.run.step + len(self.queue)
        return self.saver.due(last) or any(last % n == 0 for n in self.every)

    def settle(self) -> None:
        """Read the oldest queued step's values; make it count, or undo it."""
        queued = self.queue.popleft()
        values = queued.values.read()
        if not values.overflow and (not values.finite or values.loss > queued.threshold):
            self.undo(queued, values)
            return
        if not self.lookahead:
            if values.overflow:
                self.forget_gradients()
            else:
                self.update(queued.group)
            if self.parts.scaler is not None:
                self.parts.scaler.update(float(values.overflow))
        self.advance(queued, values)

    def advance(self, queued: _Queued, values: StepValues) -> None:
        self.run.step += 1
        self.last_good = queued.group
        logits = {} if self.recorder is None else self.recorder.add(queued.sheet)
        self.run.losses.append(values.loss)
        parts = world_size() if self.engine is None else self.engine.mesh.row_parts
        self.run.tokens += count_tokens(queued.group) * parts
        self.run.step_seconds.append(self.pace.step_done())
        if values.overflow:  # a step like any other, but for the update: rates and data go on
            self.run.overflows += 1
        else:
            self.guard.accept(values.loss)
            self.parts.noise.observe(values.small_square, values.small_weight, values.grad_norm**2, values.weight)
        step = self.run.step
        self.name_slow_ranks(step)
        if step % self.log_every == 0 or step == self.steps:
            self.write_log(queued.rate, values, logits)
        for hook in (hook for n, hook in self.every.items() if step % n == 0):
            hook(step, self.model, self.run)
            self.model.train()
        if self.saver.on_time(step):
            self.parts.check_copies()
        if self.saver.due(step):
            self.saver.save(self.parts, self.log)
        self.pace.pause_done()

    def name_slow_ranks(self, step: int) -> None:
        """Those that were slow in the last two windows, and again each time that this has lasted twice as long."""
        for slow in self.stragglers.step() if self.stragglers is not None else ():
            lasted = slow.windows
            if is_main() and lasted > 1 and lasted & (lasted - 1) == 0:
                self.log.event(step, "slow rank", str(slow))

    def write_log(self, rate: float, values: StepValues, logits: dict[str, Any]) -> None:
        record = self.run.record(self.run.step % self.log_every or self.log_every, self.cost)
        if (record["mfu"] or 0.0) > 1 and self.peak_flops is not None:
            self.raise_peak(record)
        record |= {"lr": rate, "grad_norm": values.grad_norm, "noise_scale": self.parts.noise.tokens}
        if self.parts.scaler is not None:
            record["overflows"] = self.run.overflows
        used = {} if self.monitor is None else self.monitor.latest
        self.log.write(record | {"epoch": self.feed.epochs} | values.metrics | logits, to_sinks=used)
        if self.progress is not None:
            self.progress.show(record, *self.pace.progress(self.run.step, self.steps, self.run.seconds))

    @property
    def cost(self) -> float | None:
        """MFU per token and second: FLOPs of a token over the peak of all ranks; None where one is not known."""
        if self.flops_per_token is None or self.peak_flops is None:
            return None
        return self.flops_per_token / (self.peak_flops * world_size())

    def raise_peak(self, record: dict[str, Any]) -> None:
        """A machine that does more than its peak has a higher one: the peak was measured while it was busy."""
        assert self.peak_flops is not None
        higher = self.peak_flops * record["mfu"]
        reached, measured = (f"{rate / 1e9:,.4g} GFLOP/s" for rate in (higher, self.peak_flops))
        self.peak_flops, record["mfu"] = higher, 1.0
        text = f"{reached} were reached, more than the {measured} measured before; MFU is now a share of these"
        self.log.event(self.run.step, "peak raised", text)

    def undo(self, bad: _Queued, values: StepValues) -> None:
        """Nothing of a bad step was applied: report it, and skip it, go back, or give up."""
        self.feed.give_back([later.group for later in self.queue])
        self.queue.clear()
        found = self.examine(bad, values)
        text = found.text
        set_random_state(bad.rng, self.device)
        self.forget_gradients()
        (broken,) = largest_over_ranks([float(first_non_finite(self.parts.weights()) is not None)], self.device)
        path = self.saver.latest()
        verdict = self.guard.judge(finite=values.finite, weights_finite=not broken, can_rewind=path is not None)
        self.log.event(self.run.step + 1, verdict, text)
        if self.recorder is not None and is_main():
            self.recorder.dump(self.run.step + 1, {"event": verdict, "diagnosis": found.as_dict()})
        if verdict == "stop":
            raise FloatingPointError(f"step {self.run.step + 1}: {text}; {self.guard.why_stopped(path)}")
        if verdict == "accept":
            self.feed.give_back([bad.group])
            return
        self.run.skipped += 1
        if verdict == "rewind":
            assert path is not None
            self.rewind(path, rewind_data=bool(broken))

    def examine(self, bad: _Queued, values: StepValues) -> diagnosis.Diagnosis:
        """Run the bad step again with the random numbers that it had; it is the only one that this costs anything."""
        set_random_state(bad.begun, self.device)
        usual = {} if self.recorder is None else self.recorder.usual()
        parts = self.memory.micro_batches
        case = diagnosis.Case(
            self.model, self.objective, bad.group, parts, values, bad.threshold, self.last_good, usual,
            parts_of_weights=None if self.engine is None else self.parts.weights(),
        )  # fmt: skip
        return diagnosis.examine(case)

    def rewind(self, path: Path, *, rewind_data: bool) -> None:
        """Back to a checkpoint. Broken weights accuse the machine, so the same data is tried again; broken
        batches are left behind."""
        skipped = self.run.skipped
        self.parts.restore(checkpoint.load(path, verified=True), rewind_data=rewind_data)
        self.run.skipped = skipped
        self.log.rewind(self.run.step)
        if self.recorder is not None:
            self.recorder.rewind(self.run.step)
