"""Heat maps of the flight recorder: what a cell shows, and what the page survives."""

import json
import re

import pytest

from groundup.report import write_report
from groundup.report.flight import FAINTEST, NARROW, WIDE, binned, draw, heat_maps, svg


def sheet(step, *norms):
    return {"step": step, "grad_norm": {f"blocks.{i}": norm for i, norm in enumerate(norms)}}


def cells(drawing):
    return re.findall(r'<rect x="([\d.]+)" y="(\d+)" [^>]*fill="var\((--\w+)\)" fill-opacity="([\d.]+)"', drawing)


def test_a_cell_is_the_logarithm_of_its_value():
    (heat_map,) = heat_maps([sheet(10, 0.01, 1.0), sheet(20, 0.1, None)])
    assert heat_map.layers == ["blocks.0", "blocks.1"] and heat_map.span == (0.01, 1.0)
    found = cells(svg(heat_map, WIDE))
    assert [(y, color) for _, y, color, _ in found] == [
        ("0", "--model"), ("0", "--model"), ("15", "--model"), ("15", "--bad")]  # fmt: skip
    halfway = FAINTEST + (1 - FAINTEST) / 2
    assert [float(opacity) for *_, opacity in found] == pytest.approx([FAINTEST, halfway, 1.0, 1.0], abs=0.01)
    assert draw(heat_map).legend == "from 0.01 (pale) to 1 (dark), on a logarithmic scale"


def test_a_peak_among_many_steps_is_not_lost():
    values = [1.0] * 1000
    values[777] = 50.0
    assert max(binned(values, 64)) == 50.0 and len(binned(values, 64)) <= 64
    (heat_map,) = heat_maps([sheet(step, value) for step, value in enumerate(values)])
    for width, most in ((WIDE, 64), (NARROW, 26)):
        assert sum(float(opacity) == 1.0 for *_, opacity in cells(svg(heat_map, width))) == 1
        assert len(cells(svg(heat_map, width))) <= most


def test_a_bad_step_stands_where_it_happened():
    records = [sheet(step, 1.0, 2.0) for step in range(0, 100, 10)]
    (heat_map,) = heat_maps(records, [{"step": 50, "event": "skip"}, {"step": 60, "event": "peak raised"}])
    assert heat_map.bad_steps == [50.0]
    (at,) = re.findall(r'<path d="M([\d.]+) ', svg(heat_map, WIDE))
    assert float(at) == pytest.approx(104 + (960 - 104) * 0.5, abs=0.1)


def test_nothing_to_compare_is_no_map():
    assert heat_maps([]) == heat_maps([sheet(1, 2.0)]) == heat_maps([{"step": 1}, {"grad_norm": {}}]) == []
    (flat,) = heat_maps([sheet(1, 2.0), sheet(2, 2.0)])
    assert {float(opacity) for *_, opacity in cells(svg(flat, WIDE))} == {FAINTEST}


def test_the_page_has_it_where_there_is_a_record_and_escapes_it(fake_run):
    assert "Layer by layer" not in write_report(fake_run).read_text()
    bad = [{"step": s, "grad_norm": {"<script>": 1.0 + s, "x": "much"}, "activation_max": 3} for s in range(5)]
    (fake_run / "flight.jsonl").write_text("\n".join(map(json.dumps, bad)) + '\n{"torn')
    page = write_report(fake_run).read_text()
    assert page.count('<section id="layers">') == 1 and "&lt;script&gt;" in page and "<script>" not in page
    assert "flight.jsonl: 1 line that is no whole record" in page
