"""The part of a history's page that is about the entropy of English: a table, a chart, and how to read them."""

import math

from groundup.report.ablation import Result
from groundup.report.charts import HELD_OUT, INK, MODEL, Chart, Line, Panel
from groundup.report.quantities import MISSING
from groundup.report.run import Series
from groundup.report.tables import Column, Table

NOTES = (
    "27 symbols: a to z without case or accents, and one space for all else (Shannon 1951, Bell System Technical "
    "Journal 30). F_N is the entropy of a letter given the N - 1 before it; his figures are from other texts.",
    "Counted: from the frequencies in a text itself. Too small for long blocks, which mostly occur once and then leave "
    "nothing to guess; the held-out text is short and shows it sooner.",
    "Scored: bits per letter of an n-gram of letters (Kneser-Ney) on held-out text: what this model needs, so above "
    "the entropy, on average over texts.",
    "Guessed: bounds from the ranks of the true letters among the model's guesses. The upper one holds for any "
    "guesser; the lower one for an ideal one, and is too high for others.",
    "Bits per letter are not bits per byte of the original: capitals, figures and marks are gone.",
)


def entropy_table(lab: Result) -> Table:
    """F_N by counting, scoring and guessing, beside Shannon's figures."""
    titles = ("counted", "counted, held-out", "scored", "guessed, lower", "guessed, upper", "Shannon 1951")
    shannon = lab["shannon"]
    rows = [["0 (any letter)", *[f"{math.log2(27):.3f}"] * 2, *[MISSING] * 3, f"{shannon['F0']:.2f}"]]
    for row in lab["rows"]:
        figures = [row[key] for key in ("plug_in", "plug_in_held_out", "scored", "lower", "upper")]
        his = shannon.get(f"F{row['n']}")
        rows.append([str(row["n"]), *(f"{x:.3f}" for x in figures), MISSING if his is None else f"{his:.2f}"])
    gpt = lab["gpt"]
    if gpt and gpt["fault"] is None:
        figures = [f"{gpt[key]:.3f}" for key in ("scored", "lower", "upper")]
        rows.append([f"gpt, {gpt['context']} letters", MISSING, MISSING, *figures, MISSING])
    rows.append(["zstd_19", MISSING, MISSING, f"{lab['zstd']:.3f}", *[MISSING] * 3])
    rows.append(["words", *[MISSING] * 5, f"{shannon['Fword']:.2f}"])
    low, high = lab["shannon_guessing"]
    rows.append(["a person, 100 letters", *[MISSING] * 5, f"{low} to {high}"])
    columns = [Column("N"), *(Column(title, "right") for title in titles)]
    caption = (
        f"The entropy of English, bits per letter: {lab['letters']:,} training letters, {lab['held_out_letters']:,} "
        f"held-out ones, of which {lab['guesses']:,} were guessed"
    )
    return Table(columns, rows, caption)


def entropy_chart(lab: Result) -> Chart:
    """The same by N."""

    def line(key: str, color: str, dots: bool = False) -> Line:
        points = [(float(row["n"]), row[key]) for row in lab["rows"]]
        return Line(Series([x for x, _ in points], [y for _, y in points]), color, dots)

    lines = [line("plug_in", INK), line("plug_in_held_out", INK), line("scored", MODEL, dots=True),
             line("lower", HELD_OUT), line("upper", HELD_OUT)]  # fmt: skip
    return Chart("Entropy of a letter by the letters before it", [Panel("bits per letter", lines)], "N")
