"""From finished runs to result.json: what each variant had and scored, the differences, and what to know of them."""

import statistics
from collections.abc import Sequence
from typing import Any

from groundup.config import plural, to_dict
from groundup.evaluation.lengths import POLICY
from groundup.model import MLPConfig
from groundup.scaling.matching import Planned
from groundup.scaling.settings import AblationSettings
from groundup.scaling.verdict import compare, paired_difference

MATCHES = {
    "parameters": "All have the same parameters (within 1 %, by d_ff or d_hidden) and steps; FLOPs and time differ.",
    "flops": "All are given the same training FLOPs (forward and backward, by the ledger): steps and the tokens seen "
    "differ, and so do parameters and time.",
    "time": "All are given the same seconds: steps follow from each one's measured step time; parameters, FLOPs and "
    "the tokens seen differ.",
}


def summarize(
    settings: AblationSettings, planned: Sequence[Planned], rates: dict[str, float], runs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The result, from every run of the plan."""
    compared = {p.variant.name: _runs_of(p, runs) for p in planned}
    scores = {name: [run["bits_per_byte"] for run in of] for name, of in compared.items()}
    differences = compare([
        paired_difference(p.variant.name, p.variant.against, scores[p.variant.name], scores[p.variant.against])
        for p in planned
        if p.variant.against is not None
    ])  # fmt: skip
    return {
        "format": 1,
        "settings": to_dict(settings),
        "variants": [_row(p, compared[p.variant.name], rates[p.variant.name], settings) for p in planned],
        "comparisons": [{k: v for k, v in to_dict(d).items() if k != "kind"} for d in differences],
        "notes": _notes(settings, planned, rates, len(differences)),
    }


def _runs_of(p: Planned, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    mine = [run for run in runs if run["variant"] == p.variant.name and run["final"]]
    return sorted(mine, key=lambda run: run["seed"])


def _row(p: Planned, runs: Sequence[dict[str, Any]], rate: float, settings: AblationSettings) -> dict[str, Any]:
    bits = [run["bits_per_byte"] for run in runs]
    whole = [score for score in bits if score is not None]
    ffn = p.config.blocks[0].ffn
    return {
        "name": p.variant.name,
        "against": p.variant.against,
        "change": p.variant.change,
        "parameters": p.parameters,
        "d_ff": ffn.d_ff if isinstance(ffn, MLPConfig) else None,
        "flops_per_token": p.flops_per_token,
        "flops": p.flops(settings.batch_tokens),
        "steps": p.steps,
        "tokens": p.steps * settings.batch_tokens,
        "seconds": statistics.fmean(run["seconds"] for run in runs),
        "predicted": {"step_seconds": p.seconds_per_step, "peak_memory_bytes": p.peak_bytes or None},
        "measured": {"step_seconds": _step_seconds(runs), "peak_memory_bytes": _peak_bytes(runs)},
        "rate": rate,
        "bits_per_byte": bits,
        "mean": statistics.fmean(whole) if whole else None,
        "deviation": statistics.stdev(whole) if len(whole) > 1 else None,
        "lengths": _lengths(runs),
        "positions": _positions(runs),
        "diverged": sum(run["diverged"] for run in runs),
        "losses": [run["losses"] for run in runs],
        "gradient_norms": [run["gradient_norms"] for run in runs],
    }


def _step_seconds(runs: Sequence[dict[str, Any]]) -> float | None:
    """The mean over all steps, the first one's warm-up among them: what a run's time was planned from."""
    steps = sum(run["steps"] for run in runs)
    return sum(run["seconds"] for run in runs) / steps if steps else None


def _peak_bytes(runs: Sequence[dict[str, Any]]) -> int | None:
    """Of the run whose step was recorded."""
    return max((run["peak_bytes"] for run in runs if run.get("peak_bytes")), default=None)


def _lengths(runs: Sequence[dict[str, Any]]) -> dict[str, list[list[float | None]]]:
    """By kind of scaling, and each of the lengths: the scores of the seeds that have one."""
    scored = [run["lengths"] for run in runs if run.get("lengths")]
    names = scored[0] if scored else {}
    return {name: [list(seeds) for seeds in zip(*(run[name] for run in scored), strict=True)] for name in names}


def _positions(runs: Sequence[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """By kind of scaling: [end of a stretch of positions, bits per token there], means over the seeds."""
    scored = [run["positions"] for run in runs if run.get("positions")]
    names = scored[0] if scored else {}
    return {
        name: [
            [stretch[0][0], statistics.fmean(bits for _, bits in stretch)]
            for stretch in zip(*(run[name] for run in scored), strict=True)
        ]
        for name in names
    }


def _notes(
    settings: AblationSettings, planned: Sequence[Planned], rates: dict[str, float], comparisons: int
) -> list[str]:
    seeds = plural(settings.seeds, "seed")
    notes = [
        MATCHES[settings.match],
        f"{seeds}: each gives all variants the same order of the data, and other weights and another order than the "
        "other seeds. All are scored on the same held-out text.",
        verdict_note(settings.seeds, comparisons),
    ]
    if settings.tuned_rates:
        shown = ", ".join(f"{rate:g}" for rate in settings.rates)
        notes.append(
            f"Rates: each variant trained for {settings.tune_share:.0%} of its steps at {shown}, with a seed of its "
            "own, and kept the rate that scored best on validation text."
        )
        edges = {min(settings.rates), max(settings.rates)}
        if at_edge := [
            f"{p.variant.name} ({rates[p.variant.name]:g})" for p in planned if rates[p.variant.name] in edges
        ]:
            notes.append(
                f"The best rate is at the end of those tried, so a better one may lie beyond: {', '.join(at_edge)}."
            )
    else:
        notes.append(f"All were trained at the rate {settings.middle_rate:g}, which may suit one better than another.")
    if settings.lengths:
        notes.append(
            f"Lengths: the held-out text at {', '.join(map(str, settings.lengths))} times the trained context of "
            f"{settings.context_length} tokens, without further training. {POLICY}"
        )
    notes.append(
        "Intervals are about seeds at this size, on this text, for this length of training; they say nothing of others."
    )
    return notes


def verdict_note(seeds: int, comparisons: int) -> str:
    """What intervals and verdicts rest on."""
    return (
        "Differences are paired by seed; intervals are of 95 %, each for itself (Student's t, "
        f"{plural(seeds - 1, 'degree')} of freedom). "
        f"Verdicts rest on Holm's correction for {plural(comparisons, 'comparison')}: p <= 0.05."
    )
