"""The page and the tables of a history of language models, from its folder's result.json alone."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from groundup.files import read_json, write_atomic
from groundup.report.ablation import Result, comparison_table, interval_svg
from groundup.report.charts import _STYLE, HELD_OUT, INK, MODEL, _themed, svg
from groundup.report.entropy import NOTES, entropy_chart, entropy_table
from groundup.report.quantities import MISSING
from groundup.report.tables import Column, Table, to_html, to_text
from groundup.report.templates import fill

BESIDE_NOTE = (
    "An encoder-decoder (Vaswani et al. 2017, half of the layers on either side) is scored on the second half of each "
    "window, given the first; gpt stands beside it on the same tokens after the same ones. A masked model (Devlin et "
    "al. 2018) has no likelihood: its pseudo-log-likelihood (Salazar et al. 2020) sees both sides of each token."
)

NEEDED = {"rungs", "orders", "compressors", "comparisons", "ordering", "entropy", "beside", "notes", "settings"}


def write_history_report(folder: str | Path) -> Path:
    """Write report.html into a folder that `groundup history` has finished; returns its path. The same result gives
    the same bytes. ValueError for a folder without a whole result.json."""
    folder = Path(folder)
    with _whole(folder) as result:
        html = page(folder.resolve().name, result)
    write_atomic(folder / "report.html", html.encode("utf-8", "replace"))
    return folder / "report.html"


def history_text(folder: str | Path) -> str:
    """The same tables and notes for a terminal."""
    with _whole(Path(folder)) as result:
        return _text(result)


def _text(result: Result) -> str:
    notes = "\n".join(f"- {note}" for note in result["notes"])
    tables = [rung_table(result), order_table(result), comparison_table(result)]
    said = [lede(result), *map(to_text, tables), notes]
    if result["beside"]:
        said += [to_text(beside_table(result)), BESIDE_NOTE]
    if lab := result["entropy"]:
        said += [to_text(entropy_table(lab)), "\n".join(f"- {note}" for note in NOTES)]
    return "\n\n".join(said)


@contextmanager
def _whole(folder: Path) -> Iterator[Result]:
    """result.json, whose rows turn out to be whole as they are shown; else a ValueError that names the file."""
    result = read_result(folder)
    try:
        yield result
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        remedy = f"remove it and finish the history with groundup history --resume {folder}"
        raise ValueError(
            f"{folder / 'result.json'}: damaged ({type(error).__name__}: {error}); {remedy}, or restore it"
        ) from error


def read_result(folder: Path) -> Result:
    """result.json. ValueError where there is none, or it lacks what the page shows."""
    if not (folder / "result.json").is_file():
        raise ValueError(f"{folder}: no result.json; finish the history with groundup history --resume {folder}")
    result = read_json(folder / "result.json")
    missing = NEEDED - (result.keys() if isinstance(result, dict) else set())
    if missing:
        raise ValueError(f"{folder / 'result.json'}: damaged, it has no {', '.join(sorted(missing))}")
    return result


def page(name: str, result: Result) -> str:
    """The HTML; every name and note is escaped."""
    lab = result["entropy"]
    return fill(
        "history.html.j2",
        name=name,
        lede=lede(result),
        rung_chart=rung_svg(result["rungs"], result["compressors"]),
        rung_table=to_html(rung_table(result)),
        order_table=to_html(order_table(result)),
        interval_chart=interval_svg(result["comparisons"]),
        comparison_table=to_html(comparison_table(result)),
        beside_table=to_html(beside_table(result)) if result["beside"] else None,
        beside_note=BESIDE_NOTE,
        entropy_chart=svg(entropy_chart(lab), 960, 300) if lab else None,
        entropy_table=to_html(entropy_table(lab)) if lab else None,
        entropy_notes=NOTES,
        notes=result["notes"],
    )


def lede(result: Result) -> str:
    """The rungs from worst to best, and what became of the textbook's order."""
    means = {rung["name"]: rung["mean"] for rung in result["rungs"]}
    order = result["ordering"]
    seen = ", ".join(f"{name} {means[name]:.3f}" for name in order["seen"])
    lost = [name for name, mean in means.items() if mean is None]
    gone = f" Diverged: {', '.join(lost)}." if lost else ""
    expected = " > ".join(order["expected"])
    said = "came out" if order["reproduced"] else "did not come out"
    return f"Bits per byte, worst to best: {seen}.{gone} The order of the textbook, {expected}, {said}{_shown(result)}."


def _shown(result: Result) -> str:
    """Of the neighbours in the textbook's order, those between which the seeds show a difference."""
    expected = result["ordering"]["expected"]
    verdicts = {(c["variant"], c["against"]): c["verdict"] for c in result["comparisons"]}
    pairs = [(new, old) for old, new in zip(expected, expected[1:], strict=False) if (new, old) in verdicts]
    return "".join(f"; {new} against {old}: {verdicts[new, old]}" for new, old in pairs)


def rung_table(result: Result) -> Table:
    """What each rung had, and what it scored."""
    titles = ("bits per byte", "deviation", "parameters", "FLOPs", "tokens", "tokens/s", "seconds", "rate")
    columns = [Column("rung"), Column("year", "right"), *(Column(title, "right") for title in titles), Column("what")]
    rows = [
        [r["name"], str(r["year"]), _score(r), _number(r["deviation"], ".4f"), f"{r['parameters']:,}",
         _number(r["flops"], ".3g"), f"{r['tokens']:,}", _number(r["tokens_per_second"], ",.0f"),
         f"{r['seconds']:.1f}", _number(r["rate"], "g"), f"{r['what']} ({r['source']})"]
        for r in result["rungs"]
    ]  # fmt: skip
    rows += [
        [c["name"], MISSING, f"{c['bits_per_byte']:.4f}", *[MISSING] * 7, c["policy"]] for c in result["compressors"]
    ]
    best = result["ordering"]["seen"][-1:]
    emphasis = frozenset(i for i, r in enumerate(result["rungs"]) if r["name"] in best)
    return Table(columns, rows, "Rungs, oldest first: means over the seeds, one run's training time", emphasis)


def _score(rung: Result) -> str:
    lost = f" ({rung['diverged']} of {len(rung['bits_per_byte'])} diverged)" if rung["diverged"] else ""
    return _number(rung["mean"], ".4f") + lost


def _number(x: float | None, form: str) -> str:
    return MISSING if x is None else format(x, form)


def order_table(result: Result) -> Table:
    """Kneser-Ney of every order: what each further token of context is worth."""
    rows = [
        [str(o["order"]), f"{o['bits_per_byte']:.4f}", f"{o['ngrams']:,}", f"{o['seconds']:.2f}"]
        for o in result["orders"]
    ]
    columns = [Column(title, "right") for title in ("order", "bits per byte", "n-grams kept", "seconds")]
    return Table(columns, rows, "Counted n-grams of tokens, by order")


def beside_table(result: Result) -> Table:
    """The models that are not ranked, each with what its figure is of."""
    rows = []
    for b in result["beside"]:
        whole = [bits for bits in b["bits_per_byte"] if bits is not None]
        mean = sum(whole) / len(whole) if whole else None
        by_seed = ", ".join(_number(bits, ".4f") for bits in b["bits_per_byte"])
        figures = [f"{b['parameters']:,}", f"{b['steps']:,}", f"{b['seconds']:.1f}", f"{b['scored_tokens']:,}"]
        pseudo = b["name"] == "mlm"
        shown = _number(mean, ".4f")
        rows.append([b["name"], MISSING if pseudo else shown, shown if pseudo else MISSING, by_seed, *figures,
                     b["scored_on"]])  # fmt: skip
    titles = ("bits per byte, second halves", "pseudo-bits per byte", "by seed", "parameters", "steps", "seconds",
              "tokens scored")  # fmt: skip
    columns = [Column("model"), *(Column(title, "right") for title in titles), Column("scored on")]
    return Table(columns, rows, "Beside the rungs: other figures, not to be ranked with them")


def rung_svg(rungs: Sequence[Result], compressors: Sequence[Result]) -> Markup | None:
    """Bits per byte by rung: seeds as points, mean and interval as a bar, compressors as lines."""
    drawn = [(place, rung) for place, rung in enumerate(rungs) if rung["mean"] is not None]
    if not drawn:
        return None
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "history"}):
        figure = Figure(figsize=(960 / 72, 360 / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        ax = figure.subplots()
        for place, rung in drawn:
            seeds = [bits for bits in rung["bits_per_byte"] if bits is not None]
            ax.plot([place] * len(seeds), seeds, "o", color=INK, markersize=4, alpha=0.6)
            error = None if rung["low"] is None else [[rung["mean"] - rung["low"]], [rung["high"] - rung["mean"]]]
            ax.errorbar([place], [rung["mean"]], yerr=error, fmt="s", color=MODEL, capsize=4)
            ax.annotate(f"{rung['mean']:.3f}", (place, rung["mean"]), (10, 0), textcoords="offset points",
                        verticalalignment="center", fontsize=12)  # fmt: skip
        for compressor in compressors:
            ax.axhline(compressor["bits_per_byte"], color=HELD_OUT, linewidth=1, linestyle="--")
            ax.annotate(compressor["name"], (1, compressor["bits_per_byte"]), xycoords=("axes fraction", "data"),
                        horizontalalignment="right", verticalalignment="bottom", fontsize=11)  # fmt: skip
        ax.set_xticks(range(len(rungs)), [f"{r['name']}\n{r['year']}" for r in rungs], fontsize=12)
        ax.set_xlim(-0.5, len(rungs) - 0.3)
        ax.set_ylabel("bits per byte", fontsize=12)
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue(), "Bits per byte of each rung", "history")
