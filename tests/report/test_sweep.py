"""The page of a sweep, from an invented result.json."""

import json

import pytest

from groundup.report.sweep import rate_table, sweep_text, write_sweep_report

from .test_html import Checker


def rate(value, bits, diverged=0):
    whole = [b for b in bits if b is not None]
    return {"rate": value, "bits_per_byte": bits, "mean": sum(whole) / len(whole) if whole else None, "deviation": None,
            "diverged": diverged, "steps": [40, 12], "seconds": 1.5, "faults": []}  # fmt: skip


def cell(**more):
    rates = [rate(0.01, [2.2, 2.3]), rate(0.02, [2.0, 2.1]), rate(0.04, [2.3, 2.4]), rate(0.08, [None, 3.0], 1)]
    best = {"rate": 0.0199, "low": 0.015, "high": 0.025, "bits_per_byte": 2.04, "curvature": 0.2,
            "fitted": [0.01, 0.02, 0.04]}  # fmt: skip
    return {"batch_size": 8, "weight_decay": 0.1, "steps": 40, "rates": rates, "best": best,
            "best_tried": {"rate": 0.02, "bits_per_byte": 2.05},
            "edge": {"stable": 0.04, "diverged": 0.08, "factor": 2.0}, **more}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    lost = cell(batch_size=16, best=None, best_tried=None, rates=[rate(0.01, [None, None], 2)],
                edge={"stable": None, "diverged": 0.01, "factor": None})  # fmt: skip
    result = {"settings": {}, "cells": [cell(), lost], "notes": ["a <script> note"]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_the_page_is_whole_and_escapes_what_it_is_given(folder):
    page = Checker()
    page.feed(write_sweep_report(folder).read_text())
    assert not page.open
    assert "script" not in {tag for tag, _ in page.seen}
    assert sum(tag == "svg" for tag, _ in page.seen) == 1
    words = " ".join(page.words)
    assert "a <script> note" in words
    assert "Batch 8, weight decay 0.1: best rate 0.0199 (95 %: 0.015 to 0.025), 2.0400 bits per byte" in words
    assert "the edge of stability is between 0.04 and 0.08" in words
    assert "Batch 16, weight decay 0.1: every rate diverged." in words


def test_the_same_result_gives_the_same_bytes(folder):
    first = write_sweep_report(folder).read_bytes()
    assert write_sweep_report(folder).read_bytes() == first


def test_the_table_marks_the_best_and_the_edge(folder):
    table = rate_table(json.loads((folder / "result.json").read_text()))
    assert [row[-1] for row in table.rows] == ["", "best tried", "last stable", "first diverged", "first diverged"]
    assert table.emphasis == {1}
    assert table.rows[3][6] == "1 of 2"
    assert "best tried" in sweep_text(folder)


def test_folders_without_a_whole_result(tmp_path):
    with pytest.raises(ValueError, match="no result.json; finish the sweep"):
        write_sweep_report(tmp_path)
    (tmp_path / "result.json").write_text('{"cells": []}')
    with pytest.raises(ValueError, match="it has no notes, settings"):
        write_sweep_report(tmp_path)
