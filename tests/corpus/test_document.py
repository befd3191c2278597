"""The account of what was read, and messages that no input can abuse."""

from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus import Problem, Tally
from groundup.corpus.document import printable


def test_a_tally_by_hand():
    tally = Tally()
    tally.keep()
    tally.keep()
    tally.note(Problem("a.jsonl:3", "malformed JSON"))
    tally.note(Problem("a.jsonl:4", "invalid UTF-8", dropped=False))
    tally.keep()
    assert (tally.seen, tally.kept) == (4, 3)
    assert str(tally) == "3 of 4 kept; skipped: 1 x malformed JSON; repaired: 1 x invalid UTF-8"


@given(st.lists(st.sampled_from(["keep", "drop", "repair"])))
def test_nothing_is_lost(events):
    tally = Tally()
    for event in events:
        if event == "keep":
            tally.keep()
        else:
            tally.note(Problem("x", event, dropped=event == "drop"))
    assert tally.seen == tally.kept + tally.skipped.total()
    assert tally.seen == len(events) - tally.repaired.total()


@given(st.text(), st.text())
def test_a_message_is_one_printable_line(source, detail):
    message = str(Problem(source, "malformed JSON", detail))
    assert message.isprintable()
    assert len(message) < 5000


def test_control_characters_are_spelled_out():
    assert printable("a\x1b[31m\nb\r") == "a\\x1b[31m\\nb\\r"
    assert printable("naïve 你好") == "naïve 你好"
    assert printable("\udc80") == "\\udc80"
