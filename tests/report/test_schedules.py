import re

import pytest

from groundup.optim import InverseSqrt, OneCycle, cosine, warmup_stable_decay
from groundup.report.schedules import schedule_chart, write_schedules

SCHEDULES = {
    "WSD": warmup_stable_decay(10, 100),
    "cosine": cosine(10, 100),
    "1/sqrt": InverseSqrt(10),
    "one cycle": OneCycle(100),
}


def test_a_panel_for_each_schedule_and_the_figures_beneath(tmp_path):
    page = write_schedules(tmp_path / "schedules.html", SCHEDULES, 100).read_text()
    assert page.count("<svg") == 1
    for name in SCHEDULES:
        assert len(re.findall(rf">\s*{re.escape(name)}\s*<", page)) >= 2  # a panel's title and a row
    # WSD: 10 steps of warm-up have a mean of 0.55, 20 of decay one of 0.525.
    mean = (10 * 0.55 + 70 + 20 * 0.525) / 100
    assert f"{mean:.3f}" in page and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_same_schedules_give_the_same_bytes():
    assert schedule_chart(SCHEDULES, 50) == schedule_chart(SCHEDULES, 50) != schedule_chart(SCHEDULES, 60)


@pytest.mark.parametrize(("schedules", "steps"), [({}, 10), (SCHEDULES, 0)])
def test_nothing_to_draw_is_refused(schedules, steps):
    with pytest.raises(ValueError, match="at least 1 of each"):
        schedule_chart(schedules, steps)
