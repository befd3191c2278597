"""`profile_model`: from a model and settings to a `Profile`, and its files."""

import gzip
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from groundup.accounting.hardware import Machine, gemm_rate, probe
from groundup.accounting.roofline import Ceiling, ceiling, step_work
from groundup.data.batch import Batch
from groundup.device import environment
from groundup.files import write_atomic, write_json
from groundup.model import Transformer
from groundup.profiling.attribution import quiet, spent
from groundup.profiling.bottleneck import bottleneck
from groundup.profiling.drive import record
from groundup.profiling.recorder import Recorder
from groundup.profiling.result import Profile, group_rows, operation_rows
from groundup.profiling.settings import LONGEST_BY_DEFAULT, ProfileSettings
from groundup.profiling.timeline import timeline
from groundup.train import precision

PROBE_SECONDS = 1.5


def profile_model(
    model: Transformer,
    settings: ProfileSettings | None = None,
    *,
    machine: Machine | None = None,
    batches: Iterable[Batch] | None = None,
) -> tuple[Profile, Recorder]:
    """Profile steps of the model on the device that it is on; the recorder has the traces.

    `machine` is what `accounting.probe` measured (default: it is measured now, which also sets the number of threads).
    `batches` are trained on instead of made-up ones. Training steps change the weights a little.

    Raises ValueError for settings that make no sense, such as more tokens than the model has positions for.
    """
    settings = settings or ProfileSettings()
    machine = machine or probe(model.device, PROBE_SECONDS)
    before = model.compute_dtype
    chosen = machine.precision if settings.precision == "auto" else settings.precision
    precision.apply(model, chosen)
    length = settings.context_length or min(model.config.context_length, LONGEST_BY_DEFAULT)
    device = _ceiling(machine, chosen)
    weights = sum(p.nbytes for p in model.parameters())
    try:
        recorder = record(model, settings, length, batches)
        recorder.precision = chosen
        resident = recorder.steady_bytes or weights
        return _evaluate(model, settings, length, device, recorder, resident), recorder
    finally:
        model.compute_dtype = before


def with_threads(machine: Machine, threads: int) -> Machine:
    """The CPU with this many threads, which torch then uses; their rate is measured where the probe has not."""
    rates = dict(machine.gemm_flops)
    for name in ("fp32", "bf16"):
        if f"{name} x{threads}" not in rates:
            rates[f"{name} x{threads}"] = gemm_rate(torch.device(machine.device), name, threads, PROBE_SECONDS / 4)
    torch.set_num_threads(threads)
    return replace(machine, threads=threads, gemm_flops=rates)


def _ceiling(machine: Machine, chosen: str) -> Ceiling:
    rate = machine.gemm_flops.get(f"{chosen} x{machine.threads}", machine.peak_flops)
    return Ceiling(machine.name, rate, ceiling(machine).bandwidth)


def _evaluate(
    model: Transformer, settings: ProfileSettings, length: int, device: Ceiling, recorder: Recorder, resident: int
) -> Profile:
    total = quiet(spent(recorder.events("traced")))
    work = step_work(
        model.config, settings.phase, batch=settings.batch_size, seq=length,
        dtype=model.compute_dtype, optimizer=settings.optimizer,
    )  # fmt: skip
    return Profile(
        settings=settings,
        context_length=length,
        device=device,
        step_seconds=recorder.plain_seconds,
        spread=recorder.spread,
        traced_seconds=total.seconds / total.steps,
        groups=group_rows(work, total, device),
        operations=operation_rows(total),
        interpreter_share=total.interpreter / total.seconds,
        waiting_share=total.waiting / total.seconds,
        memory=timeline(recorder.events("memory"), model.device.type, resident),
    )


def write_profile(folder: str | Path, profile: Profile, recorder: Recorder, *, trace: bool = True) -> list[Path]:
    """profile.json, memory.json and (a few megabytes) trace.json.gz, which ui.perfetto.dev opens; their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = profile.to_dict() | {"bottleneck": asdict(bottleneck(profile)), "environment": environment()}
    write_json(folder / "profile.json", _finite(content))
    names = ("seconds", "bytes", "group")
    points = [dict(zip(names, point, strict=True)) for point in profile.memory.points]
    write_json(folder / "memory.json", {"resident_bytes": profile.memory.resident_bytes, "points": points})
    paths = [folder / "profile.json", folder / "memory.json"]
    if trace:
        paths.append(folder / "trace.json.gz")
        write_atomic(paths[-1], gzip.compress(json.dumps(recorder.traces["traced"]).encode()))
    return paths


def _finite(value: Any) -> Any:
    """JSON has no infinity: such numbers become null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
