"""The time kept free after training grows with what has to be done in it."""

from dataclasses import replace

from groundup.build.reserve import reserve_for
from tests.build.test_pretrain import FACTS, PLAN


def test_total_is_the_sum_and_grows_with_the_held_out_text():
    small = reserve_for(PLAN, FACTS, 600.0, chat=True)
    parts = small.evaluation + small.chat + small.samples + small.report + small.slack
    assert small.total == parts
    large = reserve_for(PLAN, replace(FACTS, held_out_bytes=10 * FACTS.held_out_bytes), 600.0, chat=True)
    assert large.evaluation > small.evaluation
    assert large.chat == small.chat


def test_no_chat_needs_no_time_and_long_budgets_do_not_spend_it_all_on_chat():
    assert reserve_for(PLAN, FACTS, 600.0, chat=False).chat == 0
    assert reserve_for(PLAN, FACTS, 36_000.0, chat=True).chat == reserve_for(PLAN, FACTS, 72_000.0, chat=True).chat
