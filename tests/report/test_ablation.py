"""The page of a comparison, from an invented result.json."""

import json

import pytest

from groundup.report.ablation import (
    ablation_text,
    gradient_table,
    interval_svg,
    mean_curve,
    memory_table,
    time_table,
    write_ablation_report,
)
from groundup.report.charts import MODEL

from .test_html import Checker


def variant(name, against, bits, **more):
    return {
        "name": name, "against": against, "change": "<b>bold</b> & brave", "parameters": 12_345, "d_ff": 88,
        "flops_per_token": 7e4, "flops": 7.1e9, "steps": 20, "tokens": 640, "seconds": 1.5, "rate": 0.003,
        "bits_per_byte": bits, "mean": None if None in bits else sum(bits) / 2, "deviation": 0.01,
        "diverged": bits.count(None), "losses": [[[10, 5.0], [20, 4.0]], [[10, 5.2], [20, 4.2]]],
        "gradient_norms": [{"start": [1.0, None], "end": [0.5, 0.25]}, {}], **more,
    }  # fmt: skip


def comparison(name, verdict, low, high, differences=(-0.1, -0.2), **more):
    return {
        "variant": name, "against": "base", "differences": list(differences), "mean": -0.15, "low": low, "high": high,
        "p": 0.0004, "p_holm": 0.02, "diverged": 0, "reference_diverged": 0, "verdict": verdict, **more,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    result = {
        "settings": {"seeds": 2, "match": "flops", "batch_size": 4, "context_length": 8},
        "variants": [variant("base", None, [2.0, 2.1]), variant("<i>", "base", [1.9, 1.9]),
                     variant("broken", "base", [None, None])],
        "comparisons": [comparison("<i>", "better", -0.2, -0.1),
                        comparison("broken", "worse", None, None, (None, None), mean=None, p=None, p_holm=None,
                                   diverged=2)],
        "notes": ["a note with <script>"],
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_the_page_is_whole_and_escapes_what_it_is_given(folder):
    text = write_ablation_report(folder).read_text()
    page = Checker()
    page.feed(text)
    assert not page.open
    tags = {tag for tag, _ in page.seen}
    assert "script" not in tags and "i" not in tags and "b" not in tags
    assert "link" not in tags and not any("src" in attributes for _, attributes in page.seen)
    words = " ".join(page.words)
    assert "<i> is better than base; broken is worse than base" in words and "a note with <script>" in words
    assert sum(tag == "svg" for tag, _ in page.seen) == 3  # the intervals, and two curves


def test_the_same_result_gives_the_same_bytes(folder):
    first = write_ablation_report(folder).read_bytes()
    assert write_ablation_report(folder).read_bytes() == first


def test_the_text_says_what_diverged(folder):
    text = ablation_text(folder)
    assert "−0.1500" in text and "−0.2000 to −0.1000" in text and "< 0.001" in text
    assert "worse (2 of 2 diverged)" in text and "– (2 of 2 diverged)" in text


def test_a_verdict_is_filled_and_no_verdict_is_hollow():
    hollow = interval_svg([comparison("a", "no difference shown", -0.2, 0.1)])
    filled = interval_svg([comparison("a", "better", -0.2, -0.1)])
    assert hollow is not None and filled is not None
    assert hollow.count("fill: var(--model)") < filled.count("fill: var(--model)")
    assert MODEL not in filled
    assert interval_svg([comparison("a", "worse", None, None, (None, None))]) is None


def test_curves_are_means_over_seeds_at_common_points():
    series = mean_curve([[[10, 5.0], [20, 4.0]], [[10, 6.0], [20, 4.5], [30, 1.0]]], 32)
    assert (series.x, series.y) == ([320.0, 640.0], [5.5, 4.25])


def test_gradients_by_depth(folder):
    table = gradient_table(json.loads((folder / "result.json").read_text()))
    assert table.rows[0] == ["base", "1 → 0.5", "– → 0.25"]


def test_folders_without_a_whole_result_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no result.json; finish the comparison"):
        write_ablation_report(tmp_path)
    (tmp_path / "result.json").write_text('{"variants": []}')
    with pytest.raises(ValueError, match="it has no comparisons, notes, settings"):
        ablation_text(tmp_path)


def test_variants_of_different_depths_share_a_table():
    norms = [
        {"name": name, "gradient_norms": [{"start": [1.0] * depth, "end": [2.0] * depth}]}
        for name, depth in (("a", 2), ("b", 3))
    ]
    for variants in (norms, norms[::-1]):
        table = gradient_table({"variants": variants})
        assert table is not None and len(table.columns) == 4
        assert sorted(map(len, table.rows)) == [4, 4]


def test_step_times_stand_beside_what_was_timed_before(folder):
    assert time_table(json.loads((folder / "result.json").read_text())) is None, "older results have none"
    result = json.loads((folder / "result.json").read_text())
    for row, measured in zip(result["variants"], (0.110, 0.090, None), strict=True):
        row |= {"predicted": {"step_seconds": 0.100}, "measured": {"step_seconds": measured}}
    (folder / "result.json").write_text(json.dumps(result))
    assert time_table(result).rows == [["base", "100 ms", "110 ms", "+10.0 %"], ["<i>", "100 ms", "90.0 ms", "−10.0 %"]]
    assert "Time of a step" in ablation_text(folder) and "+10.0 %" in write_ablation_report(folder).read_text()


def test_memory_is_shown_beside_its_prediction(folder):
    result = json.loads((folder / "result.json").read_text())
    assert memory_table(result) is None
    result["variants"][0] |= {"predicted": {"peak_memory_bytes": 2**20}, "measured": {"peak_memory_bytes": 2**21}}
    table = memory_table(result)
    assert table is not None and table.rows == [["base", "1.00 MiB", "2.00 MiB", "+100.0 %"]]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("variants", {"name": "x"}, r"variants\[3\] has no bits_per_byte, change"),
        ("variants", 7, r"variants\[3\] has no bits_per_byte"),
        ("comparisons", {"variant": "x"}, r"comparisons\[2\] has no against"),
    ],
)
def test_a_damaged_row_is_named(name, row, message, folder):
    result = json.loads((folder / "result.json").read_text())
    result[name].append(row)
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=message):
        write_ablation_report(folder)
