import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.inference.constraint.automaton import ACCEPTED, Automaton
from groundup.inference.constraint.grammar import (
    EMPTY,
    START,
    Budget,
    Call,
    Characters,
    Options,
    Repeat,
    Series,
    negated,
    none_of,
    ranges_of,
    text,
    without,
)
from groundup.inference.constraint.network import Network, utf8_ranges
from groundup.inference.constraint.vocabulary import TokenTree

TREE = TokenTree({b: bytes([b]) for b in range(256)}, (), 256)


def automaton(grammar, tree=TREE):
    return Automaton(Network(grammar, Budget(30)), tree)


def accepts(machine, written):
    return ACCEPTED in machine.advance(machine.start, written.encode())


CODE_POINTS = st.one_of(
    st.integers(0, 0x10FFFF),
    st.sampled_from([0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]),
)


@given(st.tuples(CODE_POINTS, CODE_POINTS), st.lists(CODE_POINTS, min_size=8, max_size=8))
def test_byte_ranges_are_those_of_the_characters(pair, others):
    ranges = ranges_of([(min(pair), max(pair))])
    forms = [form for low, high in ranges for form in utf8_ranges(low, high)]
    for code in [*others, *pair]:
        if 0xD800 <= code <= 0xDFFF:
            continue
        data = chr(code).encode()
        found = [
            f for f in forms if len(f) == len(data) and all(a <= b <= c for b, (a, c) in zip(data, f, strict=True))
        ]
        assert len(found) == (min(pair) <= code <= max(pair))


def test_ranges_by_hand():
    assert ranges_of([(0xD000, 0xE100)]) == ((0xD000, 0xD7FF), (0xE000, 0xE100))
    assert negated(((0, 9), (20, 0x10FFFF))) == ((10, 19),)
    assert without(((0, 9),), ((3, 4), (9, 12))) == ((0, 2), (5, 8))


def test_brackets_nest():
    grammar = {START: Call("b"), "b": Options((EMPTY, Series((text("("), Call("b"), text(")"), Call("b")))))}
    machine = automaton(grammar)
    for good in ("", "()", "(())()", "(" * 500 + ")" * 500):
        assert accepts(machine, good)
    for bad in ("(", ")", "())", "(" * 500 + ")" * 499):
        assert not accepts(machine, bad)


def test_any_text_but_the_given_ones():
    grammar = {}
    grammar[START] = none_of(["ab", "abc", ""], ((97, 122),), "n", grammar)
    machine = automaton(grammar)
    for word in ("a", "abd", "abcd", "b", "zz"):
        assert accepts(machine, word)
    for word in ("ab", "abc", "", "A"):
        assert not accepts(machine, word)


def test_what_cannot_end_is_never_begun():
    endless = {START: Options((text("a"), Series((text("b"), Call("x"))))), "x": Series((text("c"), Call("x")))}
    machine = automaton(endless)
    assert machine.mask(machine.start).nonzero()[0].tolist() == [97]
    with pytest.raises(ValueError, match="no text can satisfy it"):
        automaton({START: Call("x"), "x": Series((text("c"), Call("x")))})


def test_bytes_without_a_token_are_avoided():
    tree = TokenTree({0: b"a", 1: b"b", 2: b"cd"}, (), 3)
    machine = automaton({START: Options((text("ab"), text("ac"), text("cd")))}, tree)
    assert machine.mask(machine.start).tolist() == [True, False, False]  # "cd", but neither "c" nor "d"
    assert machine.mask(machine.advance(machine.start, b"a")).tolist() == [False, True, False]


def test_a_rule_that_begins_with_itself_is_refused():
    for rule in (
        Call("x"),
        Series((Call("space"), Call("x"), text("a"))),
        Options((text("a"), Series((Call("x"), text("b"))))),
    ):
        grammar = {START: Call("x"), "x": rule, "space": Repeat(text(" "), 0, None)}
        with pytest.raises(ValueError, match="refers to itself before"):
            automaton(grammar)


def test_ambiguity_is_bounded_for_one_token(monkeypatch):
    """Each 'a' doubles the stacks that are possible: the work for a token runs out long before the memory."""
    monkeypatch.setattr("groundup.inference.constraint.automaton.MAX_WORK", 20_000)
    pair = Series((text("a"), Call("x"), text("b"))), Series((text("a"), Call("x"), text("c")))
    machine = automaton({START: Call("x"), "x": Options((*pair, EMPTY))})
    at = machine.start
    with pytest.raises(ValueError, match="too ambiguous"):
        for _ in range(40):
            at = machine.advance(at, b"a")


def test_frames_are_shared_and_released():
    machine = automaton({START: Call("b"), "b": Options((EMPTY, Series((text("("), Call("b"), text(")")))))})
    deep = machine.advance(machine.start, b"(" * 100)
    assert machine.advance(machine.start, b"(" * 100) == deep
    del deep
    machine._forget()
    assert len(machine._frames) == 0


def test_a_long_choice_of_characters_is_small():
    network = Network({START: Characters(((0, 0x10FFFF),))}, Budget(30))
    assert len(network.steps) < 20
