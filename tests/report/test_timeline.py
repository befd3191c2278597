"""The page of a simulated step: whole, safe, and usable with pointer and keyboard, by day and by night."""

import pytest

from groundup.parallel.plan import ParallelPlan
from groundup.planning.search import given
from groundup.planning.simulate import simulate_step
from groundup.report.timeline import bars, representatives, ticks, write_timeline
from tests.browser import CHROMIUM, NO_CHROMIUM, running
from tests.planning.small import hardware, job
from tests.report.test_html import Checker

TEXT = "shard=2 pipeline=4 microbatches=4 recompute=True"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    machine = hardware(flops=2e10, bandwidth=1e9)
    chosen = given(ParallelPlan.parse(TEXT), job(), machine)
    step = simulate_step(chosen.plan, chosen.rows, job(), machine)
    return write_timeline(tmp_path_factory.mktemp("page") / "step.html", chosen, step, machine), step


def test_the_page_is_whole_and_says_it_in_words_too(written):
    page, checker = written[0].read_text("utf-8"), Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == [] and len(checker.ids) == len(set(checker.ids))
    for words in (TEXT, "ranks 0 to 1", "ranks 6 to 7", "Forward, recomputed", "Parameters and gradients (shard)",
                  "bubble", "Waits for messages, ms"):  # fmt: skip
        assert words in checker.text
    assert "http" not in page.replace("http-equiv", "") and "script-src 'sha256-" in page
    labels = [attrs.get("aria-label", "") for tag, attrs in checker.seen if tag in ("svg", "g")]
    assert all(labels) and sum(attrs.get("tabindex") == "0" for tag, attrs in checker.seen if tag == "g") == 4


def test_bars_are_within_the_step_and_all_time_is_there(written):
    step = written[1]
    for number, lane in enumerate(step.lanes):
        drawn = bars(lane, number, step.seconds)
        assert all(bar.x >= 0 and bar.x + bar.width <= 1600 + 1e-6 for bar in drawn)
        arithmetic = sum(bar.width for bar in drawn if bar.kind in ("forward", "recompute", "backward", "update"))
        assert arithmetic * step.seconds / 1600 == pytest.approx(lane.busy, rel=0.02)


def test_of_many_lanes_some_are_drawn(written):
    lanes = written[1].lanes * 8
    assert len(representatives(lanes)) == 8 and representatives(lanes)[-1] is lanes[-1]
    assert representatives(lanes[:3]) == lanes[:3]


@pytest.mark.parametrize("seconds", [0.00042, 0.1, 0.93, 1.0, 14.4, 300.0])
def test_times_on_the_axis_are_round(seconds):
    found = ticks(seconds)
    assert 4 <= len(found) <= 11 and found[0] == (0.0, "0 ms") and found[-1][0] <= 1600


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_in_a_browser(written, tmp_path):
    with running(tmp_path / "profile") as browser:
        for scheme in ("light", "dark"):
            browser.look(1200, scheme=scheme)
            browser.open(written[0])
            colours = browser.evaluate(
                "[getComputedStyle(document.body).backgroundColor,"
                " getComputedStyle(document.querySelector('rect.forward')).fill]"
            )
            assert len(set(colours)) == 2
            browser.evaluate("document.querySelector('g.lane').focus()")
            first = browser.evaluate("document.getElementById('said').textContent")
            browser.press("ArrowRight")
            second = browser.evaluate("document.getElementById('said').textContent")
            assert first.startswith("ranks 0 to 1. ") and second != first and "ms" in second
            browser.press("End")
            assert browser.evaluate("document.querySelectorAll('rect.shown').length") == 1
            width = "document.getElementById('drawing').getBoundingClientRect().width"
            narrow = browser.evaluate(width)
            browser.evaluate("zoom.value = 4; zoom.dispatchEvent(new Event('input'))")
            assert browser.evaluate(width) == pytest.approx(4 * narrow, rel=0.01)
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
            browser.screenshot(tmp_path / f"{scheme}.png")
        assert browser.complaints == [] and len(browser.requests) == 1
