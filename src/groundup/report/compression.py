"""A comparison of compressed variants: the table for a terminal, and the page with the frontier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from groundup.files import read_json
from groundup.report.charts import HELD_OUT, INK, MODEL, drawn
from groundup.report.figure import FigurePage, write_figure_page
from groundup.report.quantities import MISSING
from groundup.report.tables import Column, Table, to_text

Result = dict[str, Any]
NEEDED = {"settings", "text", "rows", "environment"}
NOTES = (
    "Bits per byte: lower is better. All variants are scored in float32 arithmetic on the same text, so differences "
    "are those of weights, keys and values alone.",
    "Tokens per second: one sequence, greedy, as measured. Each variant takes turns with bf16, and 'x bf16' is the "
    "median of the ratios of neighbours, which another load of the machine changes less; ± is the distance between the "
    "quartiles. What runs through torch is best compared with fp32, which does, too.",
    "The compiled step packs int8 and int4 by itself, with scales in bfloat16 where the scored folder has float16.",
    "Weights and disk: dense variants in bfloat16, the baseline fp32 in float32. Zeros (magnitude, wanda, 2:4) take as "
    "much room and time as other numbers here: they are shown for what they cost in accuracy.",
    "Cache: bytes of keys and values for each token of a sequence, in bfloat16 unless they are quantised.",
    "narrow, shallow and distilled were trained on the text's other part for the number of steps in the settings; the "
    "rest was not trained.",
)


def write_compression_report(folder: str | Path) -> Path:
    """Write report.html into a folder that `groundup compress` has finished; returns its path."""
    result = read_result(Path(folder))
    rows, settings = result["rows"], result["settings"]
    kept = [row["name"] for row in rows if row["fast"]]
    page = FigurePage(
        kicker="compression",
        title=Path(settings["model"]).name,
        lede=f"Nothing else here is at once as accurate and as fast: {', '.join(kept)}.",
        charts=[
            (
                frontier_svg(rows, "fast"),
                "Accuracy against speed. Filled and joined: no other variant is as good in both.",
            ),
            (frontier_svg(rows, "small"), "Accuracy against size on disk."),
        ],
        tables=[compression_table(result)],
        notes=[*NOTES, *_how(result)],
    )
    return write_figure_page(Path(folder) / "report.html", page)


def compression_text(folder: str | Path) -> str:
    """The same table and notes for a terminal."""
    result = read_result(Path(folder))
    return "\n\n".join([to_text(compression_table(result)), "\n".join(f"- {note}" for note in (*NOTES, *_how(result)))])


def read_result(folder: Path) -> Result:
    """result.json. ValueError where there is none, or it lacks what the page shows."""
    file = folder / "result.json"
    if not file.is_file():
        raise ValueError(f"{folder}: no result.json; finish the comparison with groundup compress MODEL --out {folder}")
    result = read_json(file)
    missing = NEEDED - (result.keys() if isinstance(result, dict) else set())
    if missing:
        raise ValueError(f"{file}: damaged, it has no {', '.join(sorted(missing))}")
    return result


def compression_table(result: Result) -> Table:
    """One row a variant; those on the frontier of accuracy and speed stand out."""
    titles = ("bits per byte", "perplexity", "disk MB", "weights MB", "cache KB/token", "tokens/s", "±", "x bf16", "±")
    columns = [Column("variant"), *(Column(t, "right") for t in titles), Column("runner"), Column("frontier")]
    rows = [
        [
            row["name"], f"{row['bits_per_byte']:.4f}", f"{row['token_perplexity']:.2f}",
            _millions(row["disk_bytes"]), _millions(row["weight_bytes"]), f"{row['cache_bytes_per_token'] / 1e3:.2f}",
            f"{row['tokens_per_second']:.1f}", f"{row['tokens_per_second_spread']:.1f}",
            f"{row['speed']:.2f}", f"{row['speed_spread']:.2f}", row["runner"],
            " ".join(word for word, on in (("speed", row["fast"]), ("size", row["small"])) if on) or MISSING,
        ]
        for row in result["rows"]
    ]  # fmt: skip
    emphasis = frozenset(i for i, row in enumerate(result["rows"]) if row["fast"])
    return Table(columns, rows, f"Variants of {result['settings']['model']}, scored on {result['text']}", emphasis)


def _millions(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size >= 1e6 else f"{size / 1e6:.3f}"


def _how(result: Result) -> list[str]:
    settings = result["settings"]
    words = (
        "score_bytes",
        "context_length",
        "heal_steps",
        "heal_batch",
        "heal_rate",
        "decode_tokens",
        "rounds",
        "seed",
    )
    return ["Settings: " + ", ".join(f"{word} {settings[word]}" for word in words) + "."]


def frontier_svg(rows: Sequence[Result], kind: str) -> Markup:
    """Bits per byte over speed ("fast") or megabytes on disk ("small"), the frontier joined."""
    key, factor, label = {
        "fast": ("speed", 1.0, "speed, in times that of bf16"),
        "small": ("disk_bytes", 1e-6, "megabytes on disk"),
    }[kind]

    def draw(ax: Axes) -> None:
        kept = sorted((row[key] * factor, row["bits_per_byte"]) for row in rows if row[kind])
        ax.plot(*zip(*kept, strict=True), "-", color=MODEL, linewidth=1.5)
        for row in rows:
            x, y = row[key] * factor, row["bits_per_byte"]
            color = MODEL if row[kind] else INK
            ax.plot([x], [y], "o", color=color, markersize=6, markerfacecolor=color if row[kind] else "none")
            ax.annotate(row["name"], (x, y), textcoords="offset points", xytext=(7, 4), fontsize=12,
                        color=HELD_OUT if row[kind] else INK)  # fmt: skip
            if kind == "fast":
                half = row["speed_spread"] / 2
                ax.plot([x - half, x + half], [y, y], color=color, linewidth=1, alpha=0.6)
        ax.set_xlabel(label, fontsize=12)
        ax.set_title("bits per byte (lower is better)", loc="left", fontsize=12)
        ax.tick_params(labelsize=12)
        ax.margins(x=0.14, y=0.12)
        ax.grid(axis="y")

    return drawn(draw, f"Bits per byte by {label}", 960, 420)
