"""What a run is made of and what it took, as (label, text) lines."""

from collections.abc import Iterator
from typing import Any

from groundup.config import plural
from groundup.report.quantities import MISSING, counted, label, number, plain, quantity
from groundup.report.repetition import worth_of_repeats
from groundup.report.resources import resource_lines
from groundup.report.run import RunFiles, as_object

COST_NAMES = ("joules", "watts", "kwh", "dollars", "usd", "euros", "flops")
MOST_FACTS = 40
MOST_EVENTS = 20

# A setting of training -> (label, what it counts).
_SETTINGS = {
    "batch_size": ("batch", "sequence"),
    "micro_batches": ("micro-batches of a step", ""),
    "recompute": ("computed again in the backward pass", "block"),
    "learning_rate": ("learning rate of the hidden matrices", ""),
    "adam_rate": ("learning rate of embeddings, head and norms", ""),
    "warmup_steps": ("warm-up", "step"),
    "decay_fraction": ("decay, share of the steps", ""),
}
# A prediction of the plan -> (label, what it counts, the name under which the run measures it).
_PREDICTIONS = {
    "parameters": ("parameters", "", "parameters"),
    "seconds_per_step": ("step time", "", "step_seconds"),
    "train_seconds": ("training time", "", "train_seconds"),
    "steps": ("length", "step", "steps"),
    "tokens": ("trained on", "token", "tokens"),
    "epochs": ("passes over the text", "", "epochs"),
    "bytes_per_token": ("bytes per token", "", "bytes_per_token"),
    "bits_per_byte": ("bits per byte, held-out", "", "bits_per_byte"),
    "peak_bytes": ("peak memory", "", "peak_memory_bytes"),
}


def flatten(value: dict[str, Any], prefix: str = "", depth: int = 3) -> Iterator[tuple[str, str]]:
    """An object of a run file as (label, text) lines; inner objects have their name before theirs."""
    for key, inner in value.items():
        name = f"{prefix} {label(str(key))}".strip()
        if isinstance(inner, dict) and depth > 1:
            yield from flatten(inner, name, depth - 1)
        elif isinstance(inner, list) and inner and all(isinstance(x, str | int | float) for x in inner):
            yield name, ", ".join(map(plain, inner[:8])) + (", …" if len(inner) > 8 else "")
        else:
            yield name, quantity(str(key), inner)


def facts(run: RunFiles, epochs: float | None) -> dict[str, list[tuple[str, str]]]:
    """Groups of facts by title, without the empty ones."""
    plan = run.plan
    architecture = {k: v for k, v in run.config.items() if k != "groundup"}
    groups = {
        "Model": list(flatten(as_object(plan.get("model")) or architecture)),
        "Training": list(flatten(as_object(plan.get("training")))) or list(_training(run)),
        "Tokenizer": list(flatten(as_object(plan.get("tokenizer")))) + _tokenizer(run),
        "Data": _data(run, epochs),
        "Machine": list(flatten(as_object(plan.get("machine")))),
        "Resources while training": resource_lines(run.resources),
        "Environment": list(flatten(run.env)),
    }
    return {title: lines[:MOST_FACTS] for title, lines in groups.items() if lines}


def _training(run: RunFiles) -> Iterator[tuple[str, str]]:
    """The settings of training; and what was predicted of it, as it came."""
    came = {**run.measured, **run.training, "train_seconds": run.training.get("seconds")}
    # Of an evaluation alone the tokens are those of the held-out text.
    came["tokens"] = run.training.get("tokens", run.result.get("tokens"))
    for key, value in as_object(run.plan.get("plan")).items():
        if isinstance(value, dict | list):
            continue
        if key in _PREDICTIONS:
            name, noun, measured = _PREDICTIONS[key]
            yield name, _beside(_said(measured, value, noun), _said(measured, came.get(measured), noun))
        else:
            name, noun = _SETTINGS.get(key, (label(key), ""))
            yield name, _said(key, value, noun)


def _said(name: str, value: Any, noun: str) -> str:
    x = number(value)
    return counted(x, noun) if noun and x is not None else quantity(name, value)


def _beside(planned: str, measured: str) -> str:
    """What came, and what was planned where that reads differently.

    >>> _beside("360 ms", "420 ms"), _beside("360 ms", "–")
    ('420 ms (planned: 360 ms)', 'planned: 360 ms')
    """
    if measured == MISSING:
        return f"planned: {planned}"
    return measured if measured == planned else f"{measured} (planned: {planned})"


def _tokenizer(run: RunFiles) -> list[tuple[str, str]]:
    vocabulary = number(run.config.get("vocab_size"))
    lines = [("vocabulary", counted(vocabulary, "token"))] if vocabulary else []
    each = number(run.measured.get("bytes_per_token"))
    return lines + ([("bytes per token", f"{each:.3f}")] if each else [])


def _data(run: RunFiles, epochs: float | None) -> list[tuple[str, str]]:
    """The manifest; of paths only the file names, as a report is shown to others."""
    stored = as_object(run.plan.get("data"))
    lines = list(flatten({k: v for k, v in stored.items() if k not in ("inputs", "hashes")}))
    if isinstance(inputs := stored.get("inputs"), list):
        lines.insert(0, ("inputs", ", ".join(_file_name(str(i)) for i in inputs[:8])))
    for name, digest in list(as_object(stored.get("hashes")).items())[:8]:
        lines.append((f"SHA-256 of {_file_name(name)}", str(digest)))
    if epochs is not None:
        lines.append(("epochs", f"{epochs:.2f}"))
        lines.append(("worth of a token seen", f"{100 * worth_of_repeats(epochs):.0f} % of a new one"))
    held_out = as_object(run.result.get("held_out"))
    return lines + list(flatten({f"held_out_{k}": v for k, v in held_out.items() if k != "policy"}))


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def cost(run: RunFiles) -> list[tuple[str, str]]:
    """What the run took. Energy and money only where the run recorded them."""
    measured = run.measured | as_object(run.result.get("cost"))
    seconds, device = number(measured.get("seconds")), str(run.env.get("device") or "one machine")
    rows = [("wall-clock time", f"{quantity('seconds', seconds)} on {device}")] if seconds is not None else []
    parameters, tokens = number(measured.get("parameters")), number(measured.get("tokens"))
    if parameters and tokens and "flops" not in measured:
        estimate = quantity("flops", 6 * parameters * tokens)
        rows.append(("training arithmetic, estimated as 6 × parameters × tokens", estimate))
    recorded = [(n, v) for n, v in measured.items() if n.split("_")[-1] in COST_NAMES and number(v) is not None]
    rows += [(label(name), quantity(name, value)) for name, value in recorded]
    if rows and not any(name.split("_")[-1] != "flops" for name, _ in recorded):
        rows.append(("energy and money", "not recorded"))
    return rows


def notes(run: RunFiles) -> list[str]:
    """What the plan remarked, and what happened during training."""
    stored = run.plan.get("notes")
    lines = [str(note) for note in stored][:MOST_FACTS] if isinstance(stored, list) else []
    if number(run.measured.get("mfu")) == 1.0:
        lines.append(
            "MFU is 100 %: steps were faster than the matmul that was taken as the peak, so the peak was measured too "
            "low (was the machine busy then?)"
        )
    for event in run.events[:MOST_EVENTS]:
        lines.append(f"step {plain(event.get('step'))}: {event.get('event', '')}: {event.get('text', '')}")
    if len(run.events) > MOST_EVENTS:
        lines.append(f"and {plural(len(run.events) - MOST_EVENTS, 'more event')}, in events.jsonl")
    return lines
