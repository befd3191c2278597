"""A page of one or a few charts with their figures beneath: self-contained, like every page of this room."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from groundup.files import write_atomic
from groundup.report.tables import Table, to_html
from groundup.report.templates import fill


@dataclass(frozen=True)
class FigurePage:
    """What the page says; `charts` are (drawing, caption)."""

    kicker: str
    title: str
    lede: str
    charts: Sequence[tuple[Markup, str]]
    tables: Sequence[Table]
    notes: Sequence[str]


def write_figure_page(path: str | Path, page: FigurePage) -> Path:
    """Write the page; the same content gives the same bytes. OSError when the file cannot be written."""
    html = fill("figure.html.j2", **(vars(page) | {"tables": [to_html(table) for table in page.tables]}))
    write_atomic(Path(path), html.encode("utf-8", "replace"))
    return Path(path)
