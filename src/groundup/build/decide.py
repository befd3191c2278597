"""From facts to a decision: measure the machine, plan, and time the planned model's step before believing it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from groundup.accounting.flops import training_flops_per_token
from groundup.accounting.hardware import Machine, gemm_rate, probe
from groundup.accounting.memory import FP32_BYTES
from groundup.accounting.plan import (
    TextFacts,
    TrainingPlan,
    at_speed,
    error_of,
    fit_to_time,
    optimizer_states,
    plan,
)
from groundup.accounting.utilization import mfu
from groundup.build.pretrain import CURVE_POINTS, Session, prepare
from groundup.build.products import choose_products
from groundup.build.reserve import Reserve, reserve_for
from groundup.build.settings import BuildSettings
from groundup.build.trial import Trial, try_out
from groundup.config import from_dict, to_dict
from groundup.device import use_onednn_fp32
from groundup.kernels.quantized_linear import real
from groundup.train.checkpoint import SHARD_BYTES

PROBE_SHARE, MOST_PROBE_SECONDS = 0.02, 3.0
# Tokenizer and baselines, before pretraining: seconds for each megabyte of training text, and at least.
PREPARE_SECONDS_PER_MB, LEAST_PREPARE_SECONDS = 0.5, 2.0
# Speeds this far from the assumed one can make another shape the best.
SURPRISE = 1.25
# Of the time left when planning, for ranking shapes before the exact reserve is known.
TRAINING_SHARE = 0.85
LEAST_TRAINING_SHARE = 0.1
# Of the budget, for the steps that time the planned model.
TRIAL_SHARE = 0.15
FIXED_SHAPE = ("d_model", "num_layers", "vocab_size", "context_length", "batch_size")
ENDS_EARLY = 0.97
# Compiling takes 10 to 25 seconds the first time, and makes a step about 1.5 times as fast.
LEAST_COMPILED_SECONDS = 150.0


STORED = {"plan": TrainingPlan, "machine": Machine, "facts": TextFacts, "reserve": Reserve}


@dataclass
class Decision:
    """A plan, what it rests on, and the model that was already built to time it (not kept on disk).

    capped: whether the passes over the text end training, and not the clock. idle_bytes: of this process when the
    trial was over, 0 where there was none in it.
    """

    plan: TrainingPlan
    machine: Machine
    facts: TextFacts
    reserve: Reserve
    prepare_seconds: float
    total_seconds: float
    capped: bool
    runners_up: list[TrainingPlan] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    session: Session | None = None
    idle_bytes: int = 0

    @property
    def predicted(self) -> dict[str, float]:
        """What the report holds against the measurement."""
        made, speed = self.plan, self.plan.batch_tokens / self.plan.seconds_per_step
        return {
            "total_seconds": self.total_seconds,
            "step_seconds": made.seconds_per_step,
            "tokens_per_second": speed,
            "mfu": self.mfu(speed),
            "peak_memory_bytes": made.peak_bytes,
            "bits_per_byte": made.bits_per_byte,
            "bits_per_byte_error": error_of(made, self.facts),
            "nats_per_token": made.nats_per_token,
            "bytes_per_token": made.bytes_per_token,
        }

    def mfu(self, tokens_per_second: float) -> float:
        """The share of the probed matmul rate that training at this speed makes use of."""
        model = self.plan.model
        return mfu(training_flops_per_token(model, model.context_length), tokens_per_second, self.machine.peak_flops)

    def as_json(self) -> dict[str, Any]:
        return {
            **{name: to_dict(getattr(self, name)) for name in STORED},
            "prepare_seconds": self.prepare_seconds,
            "capped": self.capped,
            "predicted": self.predicted,
            "runners_up": [
                {"parameters": p.parameters, "d_model": p.model.d_model, "num_layers": p.model.num_layers,
                 "bits_per_byte": p.bits_per_byte, "epochs": p.epochs}
                for p in self.runners_up
            ],
        }  # fmt: skip


def decide(facts: TextFacts, settings: BuildSettings, device: torch.device, spent: float) -> Decision:
    """Plan for what is left of the budget after `spent` seconds.

    The step of the best plan is timed for real. Where the machine turns out much faster or slower than its
    matmul rate promised, planning is done once more with the measured speed.
    """
    began = time.monotonic() - spent
    use_onednn_fp32()
    machine = fixed(probe(device, min(MOST_PROBE_SECONDS, PROBE_SHARE * settings.budget_seconds)), settings)
    preparing = max(LEAST_PREPARE_SECONDS, PREPARE_SECONDS_PER_MB * facts.train_bytes / 1e6)
    costs = {"reading": spent, "measuring this machine": time.monotonic() - began - spent, "the tokenizer": preparing}

    def left() -> float:
        return settings.budget_seconds - (time.monotonic() - began) - preparing

    ranked, session, trial = _try_plans(facts, machine, settings, costs, left)
    costs["trying out a step"] = time.monotonic() - began - costs["reading"] - costs["measuring this machine"]
    timed = at_speed(ranked[0], facts, trial.seconds)
    reserve = reserve_for(timed, facts, settings.budget_seconds, settings.chat)
    costs["measuring the model and the report"] = reserve.total
    available = left() - reserve.total
    if available < LEAST_TRAINING_SHARE * settings.budget_seconds:
        raise _too_little_time(settings, available, costs)
    training = available - CURVE_POINTS * trial.score_seconds
    peak = trial.peak_bytes + saving_bytes(timed, machine)
    made = replace(fit_to_time(timed, facts, training, settings), peak_bytes=peak, micro_batches=session.micro_batches)
    total = settings.budget_seconds - (training - made.train_seconds) - reserve.slack
    return Decision(
        plan=made, machine=machine, facts=facts, reserve=reserve, prepare_seconds=preparing, total_seconds=total,
        capped=made.train_seconds < ENDS_EARLY * training,
        runners_up=ranked[1:3], notes=_notes(made, machine, session, trial, training), session=session,
        idle_bytes=trial.idle_bytes,
    )  # fmt: skip


def _try_plans(
    facts: TextFacts, machine: Machine, settings: BuildSettings, costs: dict[str, float], left: Callable[[], float]
) -> tuple[list[TrainingPlan], Session, Trial]:
    """The best plans, and the model and the trial of the first; planned twice where the first trial is a surprise."""
    speed = 1.0
    for _ in range(2):
        ranked = plan(facts, machine, TRAINING_SHARE * left(), settings, speed)
        if ranked[0].seconds_per_step > left():
            raise _too_little_time(settings, 0.0, costs)
        ranked[0] = replace(ranked[0], products=choose_products(ranked[0], machine, settings))
        session = prepare(ranked[0], machine, settings.weights_seed, worth_compiling(settings))
        trial = try_out(session, ranked[0], settings.weights_seed, TRIAL_SHARE * settings.budget_seconds)
        surprise = ranked[0].seconds_per_step / trial.seconds
        speed *= surprise
        if 1 / SURPRISE < surprise < SURPRISE:
            break
    return ranked, session, trial


def saving_bytes(made: TrainingPlan, machine: Machine) -> int:
    """What a checkpoint takes on top of a step while it is written: a copy of one shard, where steps are in the same
    memory."""
    if machine.device != "cpu":
        return 0
    return min(SHARD_BYTES, int(FP32_BYTES * (1 + optimizer_states(made.model)) * made.parameters))


def left_bytes(decision: Decision, idle_bytes: int) -> int:
    """What the stages since the trial have left in the process, which training has beside what the trial had.

    Compilers mostly: of their libraries the pages that were run, and the kernels that they made. `idle_bytes` are of
    the process now, nothing of training in it yet. On a GPU the process is not what is measured.
    """
    if decision.machine.device != "cpu" or not decision.idle_bytes:
        return 0
    return max(0, idle_bytes - decision.idle_bytes)


def _too_little_time(settings: BuildSettings, available: float, costs: dict[str, float]) -> ValueError:
    chosen = [name for name in FIXED_SHAPE if getattr(settings, name) is not None]
    smaller = f", or a smaller {' or '.join(chosen)}" if chosen else ""
    spent = ", ".join(f"{seconds:.0f} s for {what}" for what, seconds in costs.items() if seconds >= 0.5)
    return ValueError(
        f"--budget {settings.budget_seconds:g}s leaves only {max(0.0, available):.0f} s to train in ({spent}); "
        f"give it more time, or less text{smaller}"
    )


def worth_compiling(settings: BuildSettings) -> bool | None:
    """Whether to compile: as the user says; else when the time is long enough to earn the compiler's own back."""
    if settings.compile is None and settings.budget_seconds < LEAST_COMPILED_SECONDS:
        return False
    return settings.compile


def decision_from_json(stored: dict[str, Any], device: torch.device | None) -> Decision:
    """The decision of an interrupted run. Raises ValueError when the run was planned for another device, or by a
    version whose plans had other fields, or with products that this processor does not have."""
    try:
        parts = [from_dict(kind, stored[name], f"plan.json: {name}") for name, kind in STORED.items()]
    except ValueError as error:
        raise ValueError(f"{error}; this version of groundup cannot go on with it, begin a new run") from error
    made, machine, facts, reserve = parts
    if made.products is not None and not real(made.products, machine.device):
        raise ValueError(
            f"this run trains with products in {made.products}, for which this processor has no units; go on with it "
            "where it began, or begin a new run"
        )
    if device is not None and str(device) != machine.device:
        raise ValueError(f"this run was planned for {machine.device}, so it cannot go on on {device}")
    if machine.device == "cpu":
        use_onednn_fp32()
        torch.set_num_threads(machine.threads)
    return Decision(
        plan=made,
        machine=machine,
        facts=facts,
        reserve=reserve,
        prepare_seconds=stored["prepare_seconds"],
        total_seconds=stored["predicted"]["total_seconds"],
        capped=stored["capped"],
    )


def fixed(machine: Machine, settings: BuildSettings) -> Machine:
    """The machine with the user's precision and thread count instead of the fastest ones.

    With int8, which is for some products, activations and rates are those of bf16.
    """
    threads = settings.threads or machine.threads
    precision = {"auto": machine.precision, "int8": "bf16"}.get(settings.precision, settings.precision)
    key = f"{precision} x{threads}"
    rates = machine.gemm_flops
    if key not in rates:
        rates = {**rates, key: gemm_rate(torch.device(machine.device), precision, threads, seconds=0.3)}
    if machine.device == "cpu":
        torch.set_num_threads(threads)
    return replace(machine, threads=threads, precision=precision, gemm_flops=rates)


def _notes(made: TrainingPlan, machine: Machine, session: Session, trial: Trial, available: float) -> list[str]:
    notes = []
    if trial.disturbed:
        notes.append(
            f"trial steps differed by a factor of {trial.spread:.1f}: another program probably uses this machine; "
            "the plan is for the time that it leaves, and predictions will be off if that changes"
        )
    if made.train_seconds < ENDS_EARLY * available:
        notes.append(
            f"the text is used up after {made.epochs:.0f} passes: more would hardly help, so training takes "
            f"{made.train_seconds:.0f} s of the {available:.0f} s that it could; more text would make a better model"
        )
    elif made.epochs > 4:
        notes.append(
            f"the text is read {made.epochs:.1f} times; a pass after the fourth is worth clearly less than fresh "
            "text (Muennighoff et al. 2023): more text would help"
        )
    if not session.compiled:
        notes.append("training runs without torch.compile, at about two thirds of the speed")
    if machine.precision == "fp32":
        notes.append("fp32 was measured to be the fastest precision here")
    return notes
