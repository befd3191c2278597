"""Charts: deterministic, in the page's colours, and honest about what they leave out."""

import math
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from groundup.report.charts import HELD_OUT, MOST_POINTS, Chart, Line, Panel, _tick, cropped_range, svg, thinned
from groundup.report.run import Series


def series(n, f=lambda i: 1 + 1 / (i + 1)):
    return Series([float(i) for i in range(n)], [f(i) for i in range(n)])


def chart(*lines, **kwargs):
    return Chart("A chart", [Panel("What", lines, **kwargs)], "step")


def test_is_well_formed_and_in_the_colours_of_the_page():
    text = str(svg(chart(Line(series(50)), Line(series(5), HELD_OUT, dots=True)), 600, 300))
    root = ET.fromstring(text.replace("xlink:href", "href"))
    assert root.attrib["viewBox"] == "0 0 600 300"
    assert root.attrib["role"] == "img"
    assert "var(--model)" in text
    assert "var(--held-out)" in text
    assert "#0102" not in text
    for absent in ("<style", "<metadata", "font-family", "http", "<!--", "<?xml"):
        assert absent not in text


def test_the_same_chart_gives_the_same_bytes_and_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    one = svg(chart(Line(series(50))), 600, 300)
    assert one == svg(chart(Line(series(50))), 600, 300)
    assert dict(matplotlib.rcParams) == before


def test_ids_of_two_charts_on_a_page_differ():
    def ids(width):
        root = ET.fromstring(str(svg(chart(Line(series(9), dots=True)), width, 300)).replace("xlink:href", "href"))
        return {e.attrib["id"] for e in root.iter() if "id" in e.attrib}

    assert ids(600)
    assert not ids(600) & ids(380)


def test_the_name_is_escaped():
    text = svg(Chart('"><script>', [Panel("<b>", [Line(series(3))])], "<i>"), 300, 200)
    assert "<script>" not in text
    assert "<b>" not in text
    assert "<i>" not in text


def test_a_chart_without_points_is_false_and_empty_panels_are_left_out():
    assert not chart(Line(Series()))
    two = Chart("n", [Panel("Seen", [Line(series(3))]), Panel("Unseen", [Line(Series())])], "x")
    assert "Seen" in svg(two, 300, 200)
    assert "Unseen" not in svg(two, 300, 200)


@pytest.mark.parametrize("n", [1, 2, MOST_POINTS, MOST_POINTS + 1, 12_345])
def test_thinning_keeps_the_mean_and_the_end(n):
    whole = series(n, lambda i: math.sin(i))
    thin = thinned(whole)
    assert len(thin.x) == len(thin.y) <= MOST_POINTS
    assert thin.x[-1] == whole.x[-1]
    assert thin.x == sorted(thin.x)
    size = math.ceil(n / MOST_POINTS)
    assert thin.y[0] == pytest.approx(sum(whole.y[:size]) / size)


def test_cropping_leaves_out_a_high_start_only():
    falling = series(100, lambda i: 9.0 if i < 3 else 2.0 - i / 200)
    low, high = cropped_range([falling])
    assert low < 1.505
    assert 1.985 < high < 2.1
    flat = series(100, lambda i: 2 - i / 200)
    assert cropped_range([flat])[1] > 2
    assert cropped_range([series(3, lambda i: 1.0)])[0] < 1.0 < cropped_range([series(3, lambda i: 1.0)])[1]


@pytest.mark.parametrize(
    ("x", "text"),
    [(0, "0"), (2.5, "2.5"), (1000, "1 k"), (1_500_000, "1.5 M"), (10_000_000, "10 M"), (0.002, "0.002"),
     (0.0006, "6e-4"), (100_000, "100 k")],
)  # fmt: skip
def test_ticks(x, text):
    assert _tick(x) == text
