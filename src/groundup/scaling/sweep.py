"""`groundup sweep lr`: the best learning rate and the edge of stability, in a folder that can be resumed.

config.json      the settings and the text
tokenizer.json, data/    the vocabulary, the token shards and the held-out text
plan.json        steps of each batch size
runs.jsonl       one line for each finished run
result.json      every rate's scores, the edges, the best rates
"""

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from groundup import bundled
from groundup.config import from_dict, to_dict
from groundup.device import default_device, environment, physical_cores, require_device
from groundup.files import read_json, sha256, write_json
from groundup.scaling import runs_file
from groundup.scaling.ablation import Say, _prepare
from groundup.scaling.one_run import Material, Timing, measure_timings
from groundup.scaling.settings import AblationSettings
from groundup.scaling.sweep_result import summarize
from groundup.scaling.sweep_run import make_optimizer, train_at
from groundup.scaling.sweep_search import Job, cells, due, job_of, most_runs
from groundup.scaling.sweep_settings import SweepSettings
from groundup.scaling.sweep_workers import Train, workers
from groundup.scaling.variants import modern
from groundup.tokenizer import Tokenizer

LEAST_STEPS = 20
RUN_KEYS = {"batch_size", "weight_decay", "rate", "seed", "diverged", "bits_per_byte", "steps", "seconds"}


def sweep_lr(
    files: Sequence[str],
    settings: SweepSettings | None = None,
    *,
    out: str | Path,
    device: str | None = None,
    at_once: int = 1,
    say: Say = lambda line: None,
    started: float | None = None,
) -> dict[str, Any]:
    """Train one small model at many rates on `files` (none: the bundled text); returns the result.

    `at_once` runs are made side by side, each in a process of its own (a script that asks for more than one needs
    `if __name__ == "__main__":`). With a budget in place of steps, `started` is the reading of `time.monotonic` from
    which it counts.

    Raises ValueError for text that is too short, a folder in use, or a budget that pays for nothing.
    KeyboardInterrupt leaves a folder that `resume_sweep` goes on with.
    """
    started = time.monotonic() if started is None else started
    settings = settings or SweepSettings()
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        go_on = f", or --resume {folder}" if is_sweep(folder) else ""
        raise ValueError(f"--out {folder}: it already holds something; choose another{go_on}")
    target = require_device(device) if device else default_device()
    paths = [Path(file) for file in files] or [bundled.path()]
    say(f"reading text, learning a vocabulary of {settings.vocab_size:,}")
    _prepare(folder, paths, settings.training(settings.batch_sizes[0]))
    steps = settings.steps or _affordable(folder, settings, target, at_once, started)
    lengths = {str(size): max(2, round(steps * settings.batch_sizes[0] / size)) for size in settings.batch_sizes}
    write_json(folder / "plan.json", {"steps": lengths})
    inputs = {"hashes": {str(p.resolve()): sha256(p) for p in paths if p.is_file()}, "bundled": not files}
    # From here on the folder can be gone on with.
    write_json(folder / "config.json", {"sweep": to_dict(settings), "inputs": inputs, "environment": environment()})
    return _finish(folder, settings, target, at_once, say)


def resume_sweep(
    out: str | Path, *, device: str | None = None, at_once: int = 1, say: Say = lambda line: None
) -> dict[str, Any]:
    """Go on with an interrupted sweep: finished runs are kept. ValueError for a folder that is none."""
    folder = Path(out)
    if not is_sweep(folder):
        raise ValueError(
            f"--resume {folder}: no sweep's config.json there, so there is nothing to go on with; begin anew"
        )
    settings = from_dict(SweepSettings, read_json(folder / "config.json")["sweep"], "config.json: sweep")
    return _finish(folder, settings, require_device(device) if device else default_device(), at_once, say)


def is_sweep(folder: str | Path) -> bool:
    """Whether a folder holds a sweep that has begun."""
    file = Path(folder) / "config.json"
    config = read_json(file) if file.is_file() else None
    return isinstance(config, dict) and "sweep" in config


def _affordable(folder: Path, settings: SweepSettings, device: torch.device, at_once: int, started: float) -> int:
    """Steps that the rest of the budget pays for. ValueError when they are too few."""
    training = settings.training(settings.batch_sizes[0])
    timing = _timing(settings, training, device, at_once)
    held_out = Tokenizer.load(folder).encode_batch(read_json(folder / "data" / "held_out.json"))
    scoring = 2 * sum(map(len, held_out)) / training.batch_tokens * timing.scoring  # windows overlap by half
    left = settings.budget_seconds - (time.monotonic() - started)
    together = settings.seeds / math.ceil(settings.seeds / at_once)  # the edge is looked for with all seeds of a rate
    each = left * together / most_runs(settings) - scoring
    if (steps := int(each / timing.step)) < LEAST_STEPS:
        needed = most_runs(settings) * (LEAST_STEPS * timing.step + scoring) / together
        raise ValueError(
            f"the budget leaves {max(0, steps)} steps to a run, and fewer than {LEAST_STEPS} show nothing; allow at "
            f"least {needed:.0f} s more than reading takes, or try fewer rates, seeds or a smaller model"
        )
    return steps


def _timing(settings: SweepSettings, training: AblationSettings, device: torch.device, at_once: int) -> Timing:
    """Of the runs as they will be: their optimizer, and a worker's threads."""
    job, threads = Job(cells(settings)[0], settings.low, settings.seed), torch.get_num_threads()
    if at_once > 1:
        torch.set_num_threads(max(1, physical_cores() // at_once))
    try:
        make = partial(make_optimizer, job=job, settings=settings)
        return measure_timings([modern(training)], training, device, make)[0]
    finally:
        torch.set_num_threads(threads)


def _finish(folder: Path, settings: SweepSettings, device: torch.device, at_once: int, say: Say) -> dict[str, Any]:
    """Make the runs that are due until none is, then write result.json."""
    runs = read_runs(folder / "runs.jsonl")
    lengths = read_json(folder / "plan.json")["steps"]
    say(f"{len(runs)} of about {most_runs(settings)} runs are done; up to {max(lengths.values()):,} steps each")
    if jobs := due(settings, runs):
        with workers(at_once, trainer, folder, settings, lengths, str(device)) as train:
            while jobs:
                for run in train(jobs):
                    _keep(folder / "runs.jsonl", run, runs)
                    say(f"run {len(runs)}: {_said(run)}")
                jobs = due(settings, runs)
    result = summarize(settings, lengths, runs)
    write_json(folder / "result.json", result)
    return result


def trainer(folder: Path, settings: SweepSettings, lengths: dict[str, int], device: str) -> Train:
    """What trains one job on the folder's text."""
    held_out = read_json(folder / "data" / "held_out.json")
    material = Material(folder / "data" / "train", Tokenizer.load(folder), [], held_out, torch.device(device))
    return partial(_train, settings, material, lengths)


def _train(settings: SweepSettings, material: Material, lengths: dict[str, int], job: Job) -> dict[str, Any]:
    return train_at(job, settings, material, lengths[str(job.cell.batch_size)])


def _keep(path: Path, run: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(run, allow_nan=False) + "\n")
    runs.append(run)


def _said(run: dict[str, Any]) -> str:
    what = f"diverged at step {run['steps']:,}" if run["diverged"] else f"{run['bits_per_byte']:.4f} bits per byte"
    return f"rate {run['rate']:g}, batch {run['batch_size']}, decay {run['weight_decay']:g}, seed {run['seed']}: {what}"


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The finished runs of a sweep, each once."""
    return runs_file.read_runs(path, RUN_KEYS, job_of)
