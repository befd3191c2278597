import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.inference.constraint import compile_constraint
from groundup.inference.constraint.automaton import ACCEPTED
from groundup.tokenizer import Tokenizer

BYTES = Tokenizer.train_from_iterator(["a"], 257, special_tokens=["<|endoftext|>"])
END = {256}


def accepts(pattern: str, text: str) -> bool:
    automaton = compile_constraint("regex", pattern, BYTES, END)._automaton
    return ACCEPTED in automaton.advance(automaton.start, text.encode())


PATTERNS = [
    "abc",
    "a|bc|",
    "(a|b)*c",
    "a+b?",
    "a{2}b{1,3}c{,2}",
    "a{2,}",
    "(?:ab){0}",
    "(?P<x>a)|b",
    ".*",
    ".é.",
    "[^a-c]",
    "[]a]+",
    "[^]a]",
    "[a-]",
    r"[\d\-x]+",
    r"\d+\.\d*",
    r"\w+\s\W\S\D",
    r"\x41\u00e9\U0001F600",
    r"\n\t\\\{\}\[",
    "^ab$",
    "^a|b$",
    "a*?b+?c??",
    "((a|b)(c|d)){1,2}",
    "[а-я]+",
    "[\u0080-\uffff]",
    "(a*)*b",
    "(a?){3}",
    "",
    "(|a)b",
]
TEXTS = [
    "",
    "a",
    "b",
    "c",
    "ab",
    "abc",
    "aab",
    "aabbcc",
    "abab",
    "acbd",
    "xéy",
    "é",
    "😀",
    "A\u00e9😀",
    "1.5",
    "12.",
    "]a",
]
TEXTS += [
    "-",
    "-x1",
    "ж",
    "жя",
    "\uffff",
    "\ud7ff",
    "\ue000",
    "\U0010ffff",
    "\n",
    "\n\t\\{}[",
    "a !xy",
    "bc",
    "aaab",
    "aa",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_texts_as_re(pattern):
    for text in TEXTS:
        assert accepts(pattern, text) == bool(re.fullmatch(pattern, text, re.ASCII)), (pattern, text)


ATOMS = st.sampled_from(["a", "b", "é", "😀", ".", "[ab]", "[^a]", "[é-😀]", r"\d", r"\W", "1", r"\n"])


def larger(parts):
    repeat = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?"])
    return st.one_of(
        st.tuples(parts, parts).map("".join),
        st.tuples(parts, parts).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(parts, repeat).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    )


@settings(max_examples=150)
@given(st.recursive(ATOMS, larger, max_leaves=6), st.lists(st.text("ab1é😀\n", max_size=6), min_size=3, max_size=3))
def test_random_patterns_accept_what_re_accepts(pattern, texts):
    for text in [*texts, ""]:
        assert accepts(pattern, text) == bool(re.fullmatch(pattern, text, re.ASCII)), (pattern, text)


@settings(max_examples=200)
@given(st.text(r"ab^$\|()[]{}*+?.,-dwDs0123xuP<>=!:é", max_size=12))
def test_any_pattern_is_understood_as_re_does_or_refused(pattern):
    try:
        compile_constraint("regex", pattern, BYTES, END)
    except ValueError as error:
        assert re.match("regex|constraint", str(error))
        return
    compiled = re.compile(pattern, re.ASCII)
    for text in ("", "a", "ab", "b0", "aaa", "{", "-", "1d"):
        assert accepts(pattern, text) == bool(compiled.fullmatch(text)), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "message"),
    {
        "a(?=b)": "look-around",
        "(?i)a": "look-around, flags",
        r"(a)\1": r"\\1 is not supported",
        r"\ba": r"\\b is not supported",
        "a^b": "'\\^' inside",
        "(a$)b": "'\\$' inside",
        "*a": "nothing to repeat",
        "a**": "repetition of a repetition",
        "a*+": "possessive",
        "a{1001}": "more than 1,000",
        "a{3,2}": "from 3 to 2",
        "a{x}": "begins no repetition",
        "a{1": "'}' is missing",
        "(a": "'\\)' is missing",
        "a)": "unbalanced",
        "[a": "']' is expected",
        "[b-a]": "ends before it begins",
        r"[\d-z]": "a character on both sides",
        r"\xZZ": "2 hexadecimal digits",
        "\\": "the pattern ends",
        r"\01": "octal",
        "(" * 40 + ")" * 40: "deeper than 32",
        "[^\\x00-\\U0010ffff]": "no text can satisfy it",
        "\ud800": "surrogates",
        r"\ud800": "no text can satisfy it",
        "(((a{1000}){1000}){1000}){1000}": "too large|more than 1 s",
        "(?:" + "|".join("abcdefgh") * 8_000 + ")": "too large|more than 1 s",
        "x" * (1 << 18): "262,144 characters",
    }.items(),
)
def test_what_is_refused_and_why(pattern, message):
    with pytest.raises(ValueError, match=message):
        compile_constraint("regex", pattern, BYTES, END, budget_s=1.0 if "1 s" in message else None)


def test_what_makes_backtracking_explode_is_linear_here():
    assert not accepts("(a*)*(a*)*b", "a" * 5_000)
    assert accepts("(a|a)*b", "a" * 5_000 + "b")
