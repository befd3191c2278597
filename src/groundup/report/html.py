"""One self-contained page about a run, and the same content as JSON and as text for a terminal."""

import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from groundup.files import write_atomic
from groundup.report.charts import HELD_OUT, INK, Chart, Line, Panel, svg, thinned
from groundup.report.comparison import comparison_table
from groundup.report.content import Content, content, stage_table
from groundup.report.flight import draw, heat_maps
from groundup.report.quantities import counted, label, plain, quantity
from groundup.report.run import RunFiles, Series, read_run
from groundup.report.scores import score_table
from groundup.report.tables import to_html, to_text
from groundup.report.templates import fill

WIDE, NARROW = 960, 380

_PARTS = (
    ("quality", "Quality", "scores"),
    ("plan", "Plan and outcome", "comparisons"),
    ("curves", "Training", "charts"),
    ("layers", "Layer by layer", "maps"),
    ("time", "Time and cost", "stages"),
    ("samples", "Samples", "samples"),
    ("facts", "Made of", ""),
    ("openness", "Openness", ""),
    ("use", "Use it", "commands"),
    ("missing", "Missing", "problems"),
)


@dataclass(frozen=True)
class Figure:
    """A chart drawn for wide and for narrow screens; `legend` is (CSS variable, text)."""

    legend: list[tuple[str, str]]
    wide: Markup
    narrow: Markup
    caption: str


def write_report(run_dir: str | Path) -> Path:
    """Write report.html and report.json into the run folder; returns the page's path.

    Reads nothing but the folder and needs none of its files in particular: the page shows what is there and
    names what is not. The same folder gives the same bytes. ValueError for a folder that is not a run's.
    """
    run = read_run(run_dir)
    shown = content(run)
    target = run.path / "report.html"
    write_atomic(target, _encoded(page(run, shown)))
    write_atomic(run.path / "report.json", _encoded(json.dumps(_as_json(run, shown), indent=2, allow_nan=False)))
    return target


def report_text(run_dir: str | Path) -> str:
    """The main figures of a run for a terminal."""
    shown = content(read_run(run_dir))
    tables = (score_table(shown.scores), comparison_table(shown.comparisons), stage_table(shown.stages))
    level = f"Openness: {shown.openness.level} ({shown.openness.meaning})."
    lacks = "".join(f"\n  {problem}" for problem in shown.problems)
    parts = [shown.lede, *(to_text(t) for t in tables if t), shown.advice, level, f"Missing:{lacks}" if lacks else ""]
    return "\n\n".join(filter(None, parts))


def page(run: RunFiles, shown: Content) -> str:
    """The HTML. Everything from the run is escaped: samples may hold any text."""
    folder, seen_from = where(run.path)
    charts, commands = figures(run), how_to_use(run, folder)
    maps = [draw(heat_map) for heat_map in heat_maps(run.flight, run.events)]
    filled = {**vars(shown), "charts": charts, "maps": maps, "commands": commands, "": True}
    filled["stages"] = shown.stages or shown.cost
    filled["samples"] = shown.samples or shown.chat_samples
    return fill(
        "template.html.j2",
        content=shown,
        parts=[(id, title) for id, title, needs in _PARTS if filled[needs]],
        charts=charts,
        maps=maps,
        commands=commands,
        folder=folder,
        seen_from=seen_from,
        comparison_table=to_html(comparison_table(shown.comparisons)),
        stage_table=to_html(stage_table(shown.stages)),
        label=label,
        plain=plain,
        seconds=lambda value: quantity("seconds", value),
    )


def figures(run: RunFiles) -> list[Figure]:
    """Loss with the learning rate under it, bits per byte during training, throughput, and the loss scale of fp16."""
    curves, x = run.curves, "tokens seen" if run.x_unit == "tokens" else "step"
    loss, validation, bits = curves["loss"], curves["validation_loss"], curves["validation_bits_per_byte"]
    lines = [Line(loss), Line(validation, HELD_OUT, dots=True)]
    rate = Panel("Learning rate", [Line(curves["lr"], INK)], 0.35, from_zero=True)
    charts = [
        (
            Chart(f"Loss over {x}", [Panel("Loss, nats per token", lines, crop=True), rate], x),
            [
                *([("--model", f"training {loss.y[-1]:.3f}")] if loss else []),
                *([("--held-out", f"validation {validation.y[-1]:.3f}")] if validation else []),
            ],
            "Last values in the legend. Where the first steps lie far above the rest, they are cut off.",
            390,
        ),
        (
            Chart(f"Bits per byte over {x}", [Panel("Bits per byte", [Line(bits, HELD_OUT, dots=True)])], x),
            [("--held-out", f"validation {bits.y[-1]:.3f}")] if bits else [],
            "Measured during training on a little text that is neither trained on nor held out for the score.",
            240,
        ),
        (
            Chart(
                f"Throughput over {x}",
                [Panel("Tokens per second", [Line(curves["tokens_per_second"])], from_zero=True)],
                x,
            ),
            [],
            "Dips are evaluations, checkpoints or other work on the machine.",
            220,
        ),
        (Chart(f"Loss scale over {x}", [Panel("log2 of the scale", [Line(_scale(run))])], x), [], _overflows(run), 220),
    ]
    return [
        Figure(legend, svg(chart, WIDE, height), svg(chart, NARROW, max(220, height * 3 // 4)), caption)
        for chart, legend, caption, height in charts
        if chart
    ]


def _scale(run: RunFiles) -> Series:
    """Of the loss in fp16, as the power of two that it is."""
    scale = run.curves["loss_scale"]
    return Series(scale.x, [math.log2(y) if y > 0 else 0.0 for y in scale.y])


def _overflows(run: RunFiles) -> str:
    count = int(max(run.curves["overflows"].y, default=0))
    return f"Training in fp16: {counted(count, 'step')} overflowed, made no update and halved the scale."


def where(path: Path) -> tuple[str, str]:
    """The run's folder as the page names it, and the place from which that name leads there.

    A page is shown to others: what lies outside of the working directory is named without its path.
    """
    here, there = Path.cwd(), path.resolve()
    if not there.is_relative_to(here):
        return there.name, "the folder above it"
    name = there.relative_to(here).as_posix()
    return f"./{name}" if name.startswith("-") else name, "where groundup ran"


def how_to_use(run: RunFiles, folder: str) -> list[tuple[str, str]]:
    """(title, code) for what the finished folder can do."""
    if not run.has("model.safetensors"):
        return []
    word = shlex.quote(folder)
    lines = [f"groundup generate {word} --prompt 'Once upon a time'", f"groundup eval {word}"]
    if run.has("chat/config.json"):
        lines.insert(0, f"groundup chat {word}")
    python = (
        f"import groundup as gu\n\nengine = gu.Engine.load({folder!r})\nprint(engine.generate('Once upon a time').text)"
    )
    peers = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
        f"model = AutoModelForCausalLM.from_pretrained({folder!r})"
    )
    return [("In a terminal", "\n".join(lines)), ("In Python", python), ("With transformers", peers)]


def _as_json(run: RunFiles, shown: Content) -> dict[str, Any]:
    """The content, the curves (thinned) and the run's own result, with null for what JSON cannot hold."""
    curves = {name: {run.x_unit: thin.x, "y": thin.y} for name, s in run.curves.items() if s and (thin := thinned(s))}
    # Where the run lay on its machine is nobody else's business.
    result = {key: value for key, value in run.result.items() if key != "run"}
    return _finite({"format": 1, **asdict(shown), "curves": curves, "result": result, "environment": run.env})


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def _encoded(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which JSON can carry into a sample, becomes a question mark."""
    return text.encode("utf-8", "replace")
