"""`groundup history`: the history of language models on one text, one tokenizer, one budget and one metric.

config.json      the settings
neural/          the trained rungs: a whole comparison as `ablation` writes it, with the tokenizer and the texts
counted.json     the rungs that are counted
entropy.json     the entropy of English, letter by letter
beside.json      models that cannot be ranked with the rungs
result.json      all rungs in one unit, their differences and verdicts
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from groundup.config import from_dict, plural, to_dict
from groundup.device import default_device, require_device
from groundup.files import read_json, write_json
from groundup.scaling import ablation
from groundup.scaling.ablation import REMEDY, Say
from groundup.scaling.beside import beside
from groundup.scaling.counted import Texts, compressors, ngram_orders, unigram
from groundup.scaling.entropy_lab import entropy_lab
from groundup.scaling.result import verdict_note
from groundup.scaling.rungs import COMPARISONS, RUNGS, Rung, neural_rungs
from groundup.scaling.settings import AblationSettings, HistorySettings
from groundup.scaling.verdict import LEVEL, compare, paired_difference, t_quantile

NEURAL_SHARE = 0.75
"""Of the budget; the rest is for counting, guessing, and the models beside the rungs."""

ORDER = ("ngram", "lstm", "gpt")
"""The textbook's order, from worse to better."""


def history(
    files: Sequence[str],
    settings: HistorySettings | None = None,
    training: AblationSettings | None = None,
    *,
    out: str | Path,
    device: str | None = None,
    say: Say = lambda line: None,
    started: float | None = None,
) -> dict[str, Any]:
    """Every rung on `files` (none: the bundled text), all scored on the same held-out documents; returns the result.

    The trained rungs have the parameters of `gpt` within 1 %, seeds, and each its own learning rate; `training` says
    how large they are and how long they train. `encdec` and `mlm` stand beside them (see `beside`). Raises ValueError
    as `ablate` does. KeyboardInterrupt leaves a folder that `resume_history` goes on with.
    """
    started = time.monotonic() if started is None else started
    settings, training = settings or HistorySettings(), training or AblationSettings(match="parameters")
    rungs = neural_rungs(training, settings.order)
    ablation.check_variants(rungs, training)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        go_on = f", or --resume {folder}" if is_history(folder) and _is_begun(folder) else ""
        raise ValueError(f"--out {folder}: it already holds something; choose another{go_on}")
    write_json(folder / "config.json", {"history": to_dict(settings)})
    shared = replace(training, budget_seconds=NEURAL_SHARE * training.budget_seconds)
    try:
        neural = ablation.ablate(
            files, rungs, shared, out=folder / "neural", device=device, say=say, started=started
        )  # fmt: skip
    except BaseException:
        if not _is_begun(folder):
            (folder / "config.json").unlink(missing_ok=True)  # so that the folder does not seem to be one to go on with
        raise
    return _finish(folder, settings, neural, device, say)


def _is_begun(folder: Path) -> bool:
    """Whether there is something to go on with."""
    return (folder / "neural" / "config.json").is_file()


def resume_history(out: str | Path, *, device: str | None = None, say: Say = lambda line: None) -> dict[str, Any]:
    """Go on with an interrupted history: finished runs are kept. ValueError for a folder that is none."""
    folder = Path(out)
    if not is_history(folder):
        raise ValueError(f"--resume {folder}: no history's config.json there; begin anew")
    settings = from_dict(HistorySettings, read_json(folder / "config.json")["history"], "config.json: history")
    neural = ablation.resume(folder / "neural", device=device, say=say)
    return _finish(folder, settings, neural, device, say)


def is_history(folder: str | Path) -> bool:
    """Whether a folder holds a history."""
    file = Path(folder) / "config.json"
    config = read_json(file) if file.is_file() else None
    return isinstance(config, dict) and "history" in config


def _finish(
    folder: Path, settings: HistorySettings, neural: dict[str, Any], device: str | None, say: Say
) -> dict[str, Any]:
    """Count, guess letters, then put all together."""
    if not (folder / "counted.json").is_file():
        say(f"counting n-grams of order 1 to {settings.order}")
        texts = Texts.load(folder / "neural")
        counted = {
            "unigram": unigram(texts), "orders": ngram_orders(texts, settings.order),
            "compressors": compressors(texts), "tokens": texts.num_tokens, "held_out_bytes": texts.num_bytes,
        }  # fmt: skip
        write_json(folder / "counted.json", counted)
    if settings.guesses and not (folder / "entropy.json").is_file():
        say(f"guessing {settings.guesses:,} letters, one by one")
        write_json(folder / "entropy.json", _entropy(folder, settings, neural, device))
    entropy = read_json(folder / "entropy.json") if settings.guesses else None
    if settings.beside and not (folder / "beside.json").is_file():
        say("training what stands beside the rungs: encdec, and gpt on the same part; mlm")
        write_json(folder / "beside.json", _beside(folder, settings, neural, device))
    others = read_json(folder / "beside.json") if settings.beside else []
    counted = read_json(folder / "counted.json")
    result = {**summarize(settings, neural, counted), "entropy": entropy, "beside": others}
    write_json(folder / "result.json", result)
    return result


def _entropy(
    folder: Path, settings: HistorySettings, neural: dict[str, Any], device: str | None
) -> dict[str, Any] | None:
    """The lab, with a gpt trained as the rung of that name was."""
    texts = Texts.load(folder / "neural")
    training = from_dict(AblationSettings, neural["settings"], "result.json: settings")
    gpt = next(row for row in neural["variants"] if row["name"] == "gpt")
    return entropy_lab(
        texts.training_texts(), texts.held_out, settings, training, rate=gpt["rate"],
        steps=round(settings.letter_share * gpt["steps"]),
        device=require_device(device) if device else default_device(),
    )  # fmt: skip


def _beside(
    folder: Path, settings: HistorySettings, neural: dict[str, Any], device: str | None
) -> list[dict[str, Any]]:
    """Each with the rate of the rung that it is nearest to, as many steps as gpt, and the same order of the data."""
    target = require_device(device) if device else default_device()
    training, _, material = ablation.load(folder / "neural", target)
    rows = {row["name"]: row for row in neural["variants"]}
    rates = {name: row["rate"] for name, row in rows.items()}
    return beside(settings, training, material, rates, rows["gpt"]["steps"])


def summarize(settings: HistorySettings, neural: dict[str, Any], counted: dict[str, Any]) -> dict[str, Any]:
    """result.json: one row a rung, oldest first, and what is compared with what."""
    try:
        trained = {row["name"]: row for row in neural["variants"]}
        rows = [_counted_row(r, counted) if r.counted else _trained_row(r, trained[r.name]) for r in RUNGS]
        seeds = neural["settings"]["seeds"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"a result lacks {error}; {REMEDY}") from error
    scores = {row["name"]: row["bits_per_byte"] * (seeds if row["counted"] else 1) for row in rows}
    differences = compare([paired_difference(a, b, scores[a], scores[b]) for a, b in COMPARISONS])
    whole_budget = round(neural["settings"]["budget_seconds"] / NEURAL_SHARE, 6)
    return {
        "format": 1,
        "settings": {**neural["settings"], "budget_seconds": whole_budget},
        "order": settings.order,
        "rungs": rows,
        "orders": counted["orders"],
        "compressors": counted["compressors"],
        "comparisons": [{k: v for k, v in to_dict(d).items() if k != "kind"} for d in differences],
        "ordering": ordering({row["name"]: row["mean"] for row in rows}),
        "notes": _notes(settings, neural, counted),
    }


def ordering(means: dict[str, float | None]) -> dict[str, Any]:
    """The rungs from worst to best as they came out, and whether `ORDER` is among that."""
    whole = {name: mean for name, mean in means.items() if mean is not None}
    seen = sorted(whole, key=lambda name: -whole[name])
    return {"expected": list(ORDER), "seen": seen, "reproduced": [name for name in seen if name in ORDER] == [*ORDER]}


def _counted_row(rung: Rung, counted: dict[str, Any]) -> dict[str, Any]:
    made = counted["unigram"] if rung.name == "unigram" else counted["orders"][-1]
    bits, tokens = made["bits_per_byte"], counted["tokens"]
    return {
        **_identity(rung), "parameters": made["ngrams"], "flops": None, "tokens": tokens, "seconds": made["seconds"],
        "tokens_per_second": tokens / made["seconds"] if made["seconds"] else None, "rate": None,
        "bits_per_byte": [bits], "mean": bits, "deviation": None, "low": None, "high": None, "diverged": 0,
    }  # fmt: skip


def _trained_row(rung: Rung, row: dict[str, Any]) -> dict[str, Any]:
    low, high = _interval(row["mean"], row["deviation"], len(row["bits_per_byte"]) - row["diverged"])
    return {
        **_identity(rung), "parameters": row["parameters"], "flops": row["flops"], "tokens": row["tokens"],
        "seconds": row["seconds"], "tokens_per_second": row["tokens"] / row["seconds"] if row["seconds"] else None,
        "rate": row["rate"], "bits_per_byte": row["bits_per_byte"], "mean": row["mean"],
        "deviation": row["deviation"], "low": low, "high": high, "diverged": row["diverged"],
    }  # fmt: skip


def _identity(rung: Rung) -> dict[str, Any]:
    return {k: v for k, v in to_dict(rung).items() if k != "kind"}


def _interval(mean: float | None, deviation: float | None, runs: int) -> tuple[float | None, float | None]:
    """Of the mean, by Student's t; (None, None) of fewer than two runs."""
    if mean is None or deviation is None or runs < 2:
        return None, None
    half = t_quantile(LEVEL, runs - 1) * deviation / runs**0.5
    return mean - half, mean + half


def _notes(settings: HistorySettings, neural: dict[str, Any], counted: dict[str, Any]) -> list[str]:
    training = neural["settings"]
    passes = statistics.fmean(row["tokens"] for row in neural["variants"]) / counted["tokens"]
    context = training["context_length"]
    return [
        f"One text, one tokenizer of {training['vocab_size']:,} tokens, one held-out text of "
        f"{plural(counted['held_out_bytes'], 'byte')}: bits per byte of the same documents, each with its end of text.",
        "The trained rungs have the parameters of gpt within 1 % (by d_ff or d_hidden). A counted rung's parameters "
        "are the n-grams that it keeps, and it has neither seeds nor FLOPs in the ledger's sense.",
        f"Counted rungs read all {counted['tokens']:,} training tokens, trained ones {passes:.2f} times as many on "
        "average. Less than about one pass leaves trained rungs at a disadvantage.",
        f"Trained rungs see at most {context} tokens (windows that advance by half of that), n-grams "
        f"{settings.order - 1}.",
        "A comparison with a counted rung tests the seeds of the trained one against a fixed number.",
        "Each rung is the textbook's idea with today's optimizer, rate and initialisation, not the published recipe.",
        *(note for note in neural["notes"] if note != verdict_note(training["seeds"], len(neural["comparisons"]))),
        verdict_note(training["seeds"], len(COMPARISONS)),
    ]
