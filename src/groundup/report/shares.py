"""Shares of FLOPs over a sweep: the table for a terminal, and the page with its chart."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from groundup.profiling.groups import ATTENTION, FEED_FORWARD, HEAD, NORM, PROJECTIONS, RESIDUAL
from groundup.profiling.shares import PARTS, FlopShares
from groundup.report.charts import HELD_OUT, INK, MODEL, PAPER, drawn
from groundup.report.figure import FigurePage, write_figure_page
from groundup.report.tables import Column, Table

# Six parts in three colours: what attention does is one, dense layers another.
_COLORS = {
    FEED_FORWARD: (HELD_OUT, 0.9), PROJECTIONS: (MODEL, 0.45), ATTENTION: (MODEL, 1.0), HEAD: (HELD_OUT, 0.4),
    NORM: (INK, 0.9), RESIDUAL: (INK, 0.4),
}  # fmt: skip
SHOWN_IN_BAR = 0.045
NOTES = (
    "FLOPs of one forward pass over one full row; a multiply and an add are two. Backward takes twice of each.",
    "Attention: scores, softmax and values over the keys that a query may see, and rotary embeddings. Projections: "
    "queries, keys, values and output.",
    "FLOPs are not time: norms and softmax take a larger share of the time than of the FLOPs.",
)


def share_table(points: Sequence[FlopShares], what: str = "") -> Table:
    """One row per point of the sweep."""
    columns = [Column(what), *(Column(name, "right") for name in ("parameters", "context", "per token", *PARTS))]
    rows = [
        [p.label, f"{p.parameters:,}", f"{p.context_length:,}", f"{p.per_token:.4g}"]
        + [f"{p.share(part):.2%}" for part in PARTS]
        for p in points
    ]
    return Table(columns, rows, "FLOPs of a forward pass, by part")


def share_svg(points: Sequence[FlopShares], width: int = 960, height: int = 420) -> Markup:
    """A bar for each point of the sweep, cut by part from the bottom up."""

    def draw(ax: Axes) -> None:
        floor = [0.0] * len(points)
        for part in PARTS:
            shares, (color, alpha) = [p.share(part) for p in points], _COLORS[part]
            ax.bar(range(len(points)), shares, 0.72, floor, color=color, alpha=alpha, label=part)
            for place, (share, low) in enumerate(zip(shares, floor, strict=True)):
                if share >= SHOWN_IN_BAR and len(points) <= 12:
                    ax.text(place, low + share / 2, f"{share:.0%}", ha="center", va="center", fontsize=12,
                            color=PAPER if alpha > 0.5 else INK)  # fmt: skip
            floor = [low + share for low, share in zip(floor, shares, strict=True)]
        ax.set_xticks(range(len(points)), _ticks(points), fontsize=12)
        ax.set_ylim(0, 1)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.tick_params(labelsize=12)
        ax.figure.legend(loc="outside upper left", ncols=len(PARTS), frameon=False, fontsize=12, handlelength=1,
                         columnspacing=1.4)  # fmt: skip

    return drawn(draw, "Shares of FLOPs", width, height)


def _ticks(points: Sequence[FlopShares]) -> list[str]:
    """The swept value, and the model beneath where another one begins."""
    names = [p.label.rpartition(", ")[0] for p in points]
    fresh = [name if i == 0 or name != names[i - 1] else "" for i, name in enumerate(names)]
    return [f"{p.label.rpartition(', ')[2]}\n{name}".rstrip() for p, name in zip(points, fresh, strict=True)]


def write_shares(path: str | Path, points: Sequence[FlopShares], what: str) -> Path:
    """The page; `what` names what is swept, for its head."""
    first, last = points[0], points[-1]
    lede = f"From {first.label} to {last.label}: " + "; ".join(
        f"{part} {first.share(part):.1%} to {last.share(part):.1%}" for part in (FEED_FORWARD, ATTENTION, HEAD)
    )
    caption = "Each bar is one forward pass; from the bottom up as the legend reads."
    title = f"Where the FLOPs are, by {what.replace('_', ' ')}"
    charts, tables = [(share_svg(points), caption)], [share_table(points, what)]
    return write_figure_page(path, FigurePage("FLOPs", title, lede + ".", charts, tables, NOTES))
