"""Longer contexts on the page of a comparison, from an invented result."""

import json

from groundup.report.ablation import ablation_text, page
from groundup.report.lengths import length_svg, length_table, position_table

from .test_ablation import comparison, variant
from .test_html import Checker

LENGTHS = {"as trained": [[2.0, 2.2], [3.0, 3.0]], "yarn": [[2.0, 2.2], [2.4, 2.6]]}
POSITIONS = {"as trained": [[8, 5.0], [16, 7.25]], "yarn": [[8, 5.0], [16, 5.5]]}
RESULT = {
    "settings": {"seeds": 2, "match": "flops", "batch_size": 4, "context_length": 8, "lengths": [1, 2],
                 "scalings": ["yarn"]},
    "variants": [
        variant("base", None, [2.0, 2.1], lengths=LENGTHS, positions=POSITIONS),
        variant("learned $x$ <b>", "base", [1.9, 1.9], lengths={"as trained": [[1.9, 1.9], [None, None]]},
                positions={"as trained": [[8, 4.5]]}),
        variant("broken", "base", [None, None], lengths={}, positions={}),
    ],
    "comparisons": [comparison("learned $x$ <b>", "better", -0.2, -0.1)],
    "notes": [],
}  # fmt: skip


def test_the_table_has_means_and_says_cannot():
    table = length_table(RESULT)
    assert [column.title for column in table.columns] == ["variant", "rotary embedding", "1 x 8", "2 x 8"]
    assert table.rows == [
        ["base", "as trained", "2.1000", "3.0000"],
        ["base", "yarn", "2.1000", "2.5000"],
        ["learned $x$ <b>", "", "1.9000", "cannot"],
    ]


def test_positions_are_named_by_their_first_and_last():
    table = position_table(RESULT)
    assert [column.title for column in table.columns][2:] == ["0 to 7", "8 to 15"]
    assert table.rows[1:] == [["base", "yarn", "5.000", "5.500"], ["learned $x$ <b>", "", "4.500", "cannot"]]


def test_the_plot_has_a_line_for_each_row_and_the_same_bytes_twice():
    svg = length_svg(RESULT)
    assert svg is not None
    assert svg == length_svg(RESULT)
    assert "base, yarn" in svg and "learned $x$ &lt;b" in svg and "broken" not in svg
    assert svg.count("var(--held-out)") > 0


def test_a_variant_that_can_read_none_of_the_lengths_has_no_line():
    only = {**RESULT, "variants": [variant("a", None, [2.0, 2.0], lengths={"as trained": [[None], [None]]})]}
    assert length_table(only).rows == [["a", "", "cannot", "cannot"]] and length_svg(only) is None


def test_page_and_text_show_them_and_a_result_without_lengths_has_neither():
    checker = Checker()
    checker.feed(page("x", RESULT))
    assert not checker.open and "Longer contexts" in checker.words
    old = json.loads(json.dumps(RESULT))
    for row in old["variants"]:
        del row["lengths"], row["positions"]
    assert length_table(old) is None and position_table(old) is None and length_svg(old) is None
    assert "Longer contexts" not in page("x", old)


def test_the_text_shows_them(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    assert "cannot" in ablation_text(tmp_path) and "8 to 15" in ablation_text(tmp_path)
