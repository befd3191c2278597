import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.inference.sampling import SamplingParams
from groundup.inference.sequence import Sequence, StopMatcher
from groundup.tokenizer.stream import StreamDecoder


def shown(pieces, stop):
    matcher = StopMatcher(stop)
    text = "".join(matcher.push(piece) for piece in pieces)
    return text + matcher.flush(), matcher.stopped


def test_a_stop_text_across_pieces_by_hand():
    matcher = StopMatcher(("END",))
    assert [matcher.push(p) for p in ("one E", "N", "E", "ND two")] == ["one ", "", "EN", ""]
    assert matcher.stopped and matcher.push("more") == "" and matcher.flush() == ""


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_equals_a_search_of_the_whole_text(pieces, stop):
    """However the text is cut: everything up to the first stop text to be completed, and nothing after."""
    text = "".join(pieces)
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(s) for s in stop)]
    found, stopped = shown(pieces, tuple(stop))
    assert stopped == bool(ends)
    if not ends:
        assert found == text
    elif len(stop) == 1:
        assert found == text[: text.index(stop[0])]
    else:
        assert text.startswith(found) and not any(s in found for s in stop)


def sequence(room=100, **settings):
    return Sequence([0], SamplingParams(**settings), StreamDecoder(lambda i: bytes([i])), {255}, room)


def test_finish_reasons():
    by_end, by_stop, by_length, by_room = sequence(), sequence(stop="b"), sequence(max_tokens=2), sequence(1)
    assert [by_end.push(ord("a")), by_end.push(255)] == ["a", ""]
    assert [by_stop.push(ord("a")), by_stop.push(ord("b"))] == ["a", ""]
    assert [by_length.push(ord("a")), by_length.push(ord("b"))] == ["a", "b"]
    assert by_room.push(ord("a")) == "a"
    finished = [s.completion() for s in (by_end, by_stop, by_length, by_room)]
    assert [c.finish_reason for c in finished] == ["end", "stop", "length", "length"]
    assert [c.text for c in finished] == ["a", "a", "ab", "a"]
    assert finished[0].tokens == [97, 255]


@pytest.mark.parametrize("room, max_tokens", [(0, 5), (5, 0)])
def test_no_room_at_all(room, max_tokens):
    assert sequence(room, max_tokens=max_tokens).completion().finish_reason == "length"


def test_a_character_is_never_broken_and_an_incomplete_one_is_marked():
    whole, cut = sequence(max_tokens=2), sequence(max_tokens=1)
    assert [whole.push(b) for b in "é".encode()] == ["", "é"]
    assert cut.push("é".encode()[0]) == "\ufffd"


def test_what_was_held_back_is_shown_when_the_text_ends():
    s = sequence(stop="abc")
    assert [s.push(ord("a")), s.push(ord("b")), s.push(255)] == ["", "", "ab"]
    assert s.completion().finish_reason == "end"
