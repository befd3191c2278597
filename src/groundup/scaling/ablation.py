"""`groundup ablate`: text and variants in; matched runs over seeds and a verdict out, in a folder that can be resumed.

config.json      the settings, the variants and the text, all that a resume needs
tokenizer.json, data/    the vocabulary, the token shards, the validation and the held-out text
plan.json        each variant as it is trained: architecture, parameters, FLOPs, steps
runs.jsonl       one line for each finished run
result.json      scores, differences, verdicts
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from groundup import bundled, data
from groundup.config import from_dict, plural, to_dict
from groundup.corpus import Document, read_documents, split_held_out
from groundup.device import default_device, environment, require_device
from groundup.evaluation.lengths import check_lengths
from groundup.files import read_json, sha256, write_json
from groundup.model import ModelConfig
from groundup.scaling import runs_file
from groundup.scaling.matching import Planned, affordable_steps, matched_configs, plan_lengths, relative_lengths
from groundup.scaling.one_run import Material, Timing, measure_timings, predicted_peak, texts_of, train_once
from groundup.scaling.result import summarize
from groundup.scaling.runs_file import REMEDY
from groundup.scaling.settings import AblationSettings
from groundup.scaling.variants import Variant
from groundup.tokenizer import Tokenizer

Say = Callable[[str], None]
# Seeds of the runs that choose a rate; no compared run has them.
TUNING_SEED = 1_000_003
VALIDATION_FRACTION = 0.03
RUN_KEYS = {"variant", "seed", "rate", "final", "diverged"}


@dataclass(frozen=True)
class Job:
    """A run that is due: `final` is compared, others choose the variant's rate."""

    planned: Planned
    seed: int
    rate: float
    steps: int
    final: bool

    @property
    def key(self) -> tuple[str, int, float, bool]:
        return self.planned.variant.name, self.seed, self.rate, self.final

    @property
    def seconds(self) -> float:
        return self.steps * self.planned.seconds_per_step


def ablate(
    files: Sequence[str],
    variants: Sequence[Variant],
    settings: AblationSettings | None = None,
    *,
    out: str | Path,
    device: str | None = None,
    say: Say = lambda line: None,
    started: float | None = None,
) -> dict[str, Any]:
    """Train every variant at equal cost over seeds on `files` (none: the bundled text); returns the result.

    The first variant sets the cost that the others match. All are scored on the same held-out text, in bits per
    byte. With a budget in place of steps, `started` is the reading of `time.monotonic` from which it counts.

    Raises ValueError for variants that cannot be matched, text that is too short, a folder that is in use, or a
    budget that pays for nothing. KeyboardInterrupt leaves a folder that `resume` goes on with.
    """
    started = time.monotonic() if started is None else started
    settings = settings or AblationSettings()
    check_variants(variants, settings)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        go_on = f", or --resume {folder}" if (folder / "config.json").is_file() else ""
        raise ValueError(f"--out {folder}: it already holds something; choose another{go_on}")
    configs = matched_configs(variants, settings)
    target = require_device(device) if device else default_device()
    paths = [Path(file) for file in files] or [bundled.path()]
    say(f"reading text, learning a vocabulary of {settings.vocab_size:,}")
    _prepare(folder, paths, settings)
    held_out = read_json(folder / "data" / "held_out.json")
    check_lengths(Tokenizer.load(folder), held_out, settings.context_length, settings.lengths)
    say(f"timing steps of {plural(len(variants), 'variant')} in turns")
    timings = measure_timings(configs, settings, target)
    seconds = [timing.step for timing in timings]
    lengths = relative_lengths(configs, [timing.fastest_step for timing in timings], settings.match)
    peaks = [predicted_peak(config, settings, target) for config in configs]
    steps = settings.steps
    if steps is None:
        left = settings.budget_seconds - (time.monotonic() - started)
        steps = affordable_steps(left, seconds, lengths, settings, _scoring_seconds(folder, settings, timings))
    planned = plan_lengths(variants, configs, seconds, [round(steps * length) for length in lengths], peaks)
    write_json(folder / "plan.json", to_dict(planned))
    inputs = {"hashes": {str(p.resolve()): sha256(p) for p in paths if p.is_file()}, "bundled": not files}
    # From here on the folder can be gone on with.
    write_json(folder / "config.json", {"ablation": to_dict(settings), "inputs": inputs, "environment": environment()})
    return _finish(folder, target, say)


def resume(out: str | Path, *, device: str | None = None, say: Say = lambda line: None) -> dict[str, Any]:
    """Go on with an interrupted comparison: finished runs are kept. ValueError for a folder that is none."""
    folder = Path(out)
    if not (folder / "config.json").exists():
        raise ValueError(f"--resume {folder}: no config.json there, so there is nothing to go on with; begin anew")
    config = read_json(folder / "config.json")
    for kind, verb in (("history", "history"), ("sweep", "sweep lr")):
        if isinstance(config, dict) and kind in config:
            raise ValueError(f"--resume {folder}: this is a {kind}; go on with: groundup {verb} --resume {folder}")
    return _finish(folder, require_device(device) if device else default_device(), say)


def check_variants(variants: Sequence[Variant], settings: AblationSettings) -> None:
    """ValueError for variants that cannot be compared: too few, alike in name, or of another text or context."""
    names = [variant.name for variant in variants]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"variants {', '.join(names) or '(none)'}: expected at least two, each with its own name")
    lost = [v.against for v in variants if v.against is not None and v.against not in names]
    if lost:
        raise ValueError(f"variants: {lost[0]!r} is compared with, but not among {', '.join(names)}")
    for variant in variants:
        for key in ("context_length", "vocab_size"):
            theirs, ours = getattr(variant.config, key), getattr(settings, key)
            if theirs != ours:
                raise ValueError(
                    f"variant {variant.name!r}: {key}={theirs}; all variants are trained with the comparison's own "
                    f"({ours}): leave it out, or give it as a setting"
                )


def _prepare(folder: Path, paths: Sequence[Path], settings: AblationSettings) -> None:
    """Write the tokenizer, the token shards and the texts to score on."""
    documents = list(_up_to(read_documents(paths, text_field=settings.text_field), settings.text_bytes))
    split = split_held_out(documents, settings.held_out_fraction, settings.seed)
    learnt = split_held_out(split.train, VALIDATION_FRACTION, settings.seed + 1)
    train = [document.text for document in learnt.train]
    tokenizer = Tokenizer.train_from_iterator(train, settings.vocab_size)
    tokenizer.save(folder)
    data.write_shards(train, tokenizer, folder / "data" / "train")
    for name, part in (("validation", learnt.held_out), ("held_out", split.held_out)):
        write_json(folder / "data" / f"{name}.json", texts_of(part, settings.scored_bytes))


def _up_to(documents: Iterator[Document], most_bytes: int) -> Iterator[Document]:
    for document in documents:
        yield document
        most_bytes -= len(document.text.encode("utf-8", "replace"))
        if most_bytes <= 0:
            return


def _scoring_seconds(folder: Path, settings: AblationSettings, timings: Sequence[Timing]) -> float:
    """What scoring all runs will take: windows advance by half their length, so each token is seen twice."""
    tokenizer = Tokenizer.load(folder)
    sizes = {
        name: sum(map(len, tokenizer.encode_batch(read_json(folder / "data" / f"{name}.json"))))
        for name in ("validation", "held_out")
    }
    lengths = len(settings.lengths) * (1 + len(settings.scalings)) / 2  # without overlap
    tokens = settings.seeds * (1 + lengths) * sizes["held_out"] + len(settings.tuned_rates) * sizes["validation"]
    return 2 * tokens / settings.batch_tokens * sum(timing.scoring for timing in timings)


def _finish(folder: Path, device: torch.device, say: Say) -> dict[str, Any]:
    """Run what is not in runs.jsonl yet, then write result.json."""
    settings, planned, material = load(folder, device)
    done = read_runs(folder / "runs.jsonl")
    tuning = tuning_jobs(planned, settings)
    clock = _Clock(tuning + jobs_of(planned, settings, {p.variant.name: settings.middle_rate for p in planned}), done)
    say(f"{clock}")
    for job in tuning:
        _run(job, settings, material, folder, done, clock, say)
    rates = chosen_rates(planned, settings, done)
    for job in jobs_of(planned, settings, rates):
        _run(job, settings, material, folder, done, clock, say)
    result = summarize(settings, planned, rates, done)
    write_json(folder / "result.json", result)
    return result


def load(folder: Path, device: torch.device) -> tuple[AblationSettings, list[Planned], Material]:
    """What a folder holds: settings, planned variants, texts. ValueError for one that is damaged."""
    try:
        stored = read_json(folder / "config.json")
        settings = from_dict(AblationSettings, stored["ablation"], "config.json: ablation")
        planned = [_planned(entry) for entry in read_json(folder / "plan.json")]
        validation, held_out = (read_json(folder / "data" / f"{name}.json") for name in ("validation", "held_out"))
    except (KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        raise ValueError(f"{folder}: damaged or incomplete ({type(error).__name__}: {error}); {REMEDY}") from error
    tokenizer = Tokenizer.load(folder)
    return settings, planned, Material(folder / "data" / "train", tokenizer, validation, held_out, device)


def _planned(entry: dict[str, Any]) -> Planned:
    variant = {**entry["variant"], "config": from_dict(ModelConfig, entry["variant"]["config"], "plan.json")}
    del variant["kind"]
    plain = {k: v for k, v in entry.items() if k not in ("kind", "variant", "config")}
    return Planned(Variant(**variant), from_dict(ModelConfig, entry["config"], "plan.json: config"), **plain)


def tuning_jobs(planned: Sequence[Planned], settings: AblationSettings) -> list[Job]:
    """Each variant at each rate, for a share of its steps."""
    return [
        Job(p, TUNING_SEED + settings.seed, rate, max(2, round(settings.tune_share * p.steps)), final=False)
        for p in planned
        for rate in settings.tuned_rates
    ]


def jobs_of(planned: Sequence[Planned], settings: AblationSettings, rates: dict[str, float]) -> list[Job]:
    """The compared runs, seed by seed, so that a run that is stopped has whole rows of all variants."""
    return [
        Job(p, settings.seed + number, rates[p.variant.name], p.steps, final=True)
        for number in range(settings.seeds)
        for p in planned
    ]


def chosen_rates(
    planned: Sequence[Planned], settings: AblationSettings, done: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """The rate of each variant that scored best on the validation text; the lowest where all diverged."""
    if not settings.tuned_rates:
        return {p.variant.name: settings.middle_rate for p in planned}
    chosen = {}
    for p in planned:
        runs = [run for run in done if run["variant"] == p.variant.name and not run["final"]]
        whole = [run for run in runs if not run["diverged"]]
        best = min(whole, key=lambda run: run["bits_per_byte"], default=None)
        chosen[p.variant.name] = min(settings.rates) if best is None else best["rate"]
    return chosen


def _run(
    job: Job,
    settings: AblationSettings,
    material: Material,
    folder: Path,
    done: list[dict[str, Any]],
    clock: "_Clock",
    say: Say,
) -> None:
    """Train unless it is done, and keep the run as a line of runs.jsonl."""
    if any(_key_of(run) == job.key for run in done):
        return
    began = time.monotonic()
    made = train_once(
        job.planned.config, settings, material, seed=job.seed, rate=job.rate, steps=job.steps, final=job.final
    )
    run = {"variant": job.planned.variant.name, "final": job.final, **made}
    with open(folder / "runs.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(run, allow_nan=False) + "\n")
    done.append(run)
    clock.count(job, time.monotonic() - began)
    what = f"seed {job.seed}" if job.final else "choosing a rate"
    score = "diverged" if run["diverged"] else f"{run['bits_per_byte']:.4f} bits per byte"
    say(f"{clock}: {run['variant']}, {what}, rate {job.rate:g}: {score} ({run['seconds']:.0f} s)")


def _key_of(run: dict[str, Any]) -> tuple[str, int, float, bool]:
    return run["variant"], run["seed"], run["rate"], run["final"]


class _Clock:
    """How many runs there are, and how long the rest should take, by how long those so far took."""

    def __init__(self, jobs: Sequence[Job], done: Sequence[dict[str, Any]]) -> None:
        self.total, self.finished = len(jobs), len(done)
        finished = {_place(run["variant"], run["seed"], run["rate"], run["final"]) for run in done}
        self._left = sum(job.seconds for job in jobs if _place(*job.key) not in finished)
        self._predicted = self._spent = 0.0

    def count(self, job: Job, seconds: float) -> None:
        self.finished += 1
        self._left -= job.seconds
        self._predicted += job.seconds
        self._spent += seconds

    def __str__(self) -> str:
        left = max(0.0, self._left * self._spent / self._predicted if self._predicted else self._left)
        return f"run {self.finished} of {self.total}, {left:,.0f} s left"


def _place(variant: str, seed: int, rate: float, final: bool) -> tuple[str, int, float | None]:
    """A run's place in the plan, which does not know yet what rate a compared run will have."""
    return variant, seed, None if final else rate


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The finished runs of a comparison, each once."""
    return runs_file.read_runs(path, RUN_KEYS, _key_of)
