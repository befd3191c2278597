"""One small table, shown as HTML in the report and as aligned text in a terminal."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup


@dataclass(frozen=True)
class Column:
    title: str
    align: Literal["left", "right"] = "left"


@dataclass(frozen=True)
class Table:
    """Rows of finished text under columns; `emphasis` holds the numbers of rows to stand out."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    emphasis: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), f"a row of {len(row)} cells under {len(self.columns)} columns"

    def __bool__(self) -> bool:
        return bool(self.rows)


def to_html(table: Table) -> Markup:
    """A <table>; every cell is escaped. The first cell of a row heads it."""
    head = Markup("").join(Markup('<th scope="col" class="{}">{}</th>').format(c.align, c.title) for c in table.columns)
    body = Markup("").join(_html_row(table, i) for i in range(len(table.rows)))
    caption = Markup("<caption>{}</caption>").format(table.caption) if table.caption else Markup("")
    return Markup(
        '<div class="scroll" tabindex="0"><table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(caption, head, body)


def _html_row(table: Table, i: int) -> Markup:
    cells = [
        Markup('<th scope="row" class="{}">{}</th>' if j == 0 else '<td class="{}">{}</td>').format(column.align, cell)
        for j, (column, cell) in enumerate(zip(table.columns, table.rows[i], strict=True))
    ]
    mark = Markup(' class="emphasis"') if i in table.emphasis else Markup("")
    return Markup("<tr{}>{}</tr>").format(mark, Markup("").join(cells))


def to_text(table: Table) -> str:
    """Columns padded to one width with two spaces between, a rule under the head; control characters dropped.

    >>> print(to_text(Table([Column("name"), Column("n", "right")], [["a", "10"], ["bc", "9"]])))
    name   n
    ----  --
    a     10
    bc     9
    """
    head = [column.title for column in table.columns]
    rows = [[_printable(cell) for cell in row] for row in [head, *table.rows]]
    widths = [max(_width(row[j]) for row in rows) for j in range(len(head))]
    rows.insert(1, ["-" * width for width in widths])
    lines = ["  ".join(map(_pad, row, widths, table.columns)).rstrip() for row in rows]
    return "\n".join([*([table.caption] if table.caption else []), *lines])


def _pad(cell: str, width: int, column: Column) -> str:
    space = " " * (width - _width(cell))
    return cell + space if column.align == "left" else space + cell


def _printable(cell: str) -> str:
    """Text from a run must not steer the terminal that shows it."""
    return "".join(c if unicodedata.category(c)[0] != "C" else " " for c in cell)


def _width(text: str) -> int:
    """Columns that a terminal gives to `text`: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
