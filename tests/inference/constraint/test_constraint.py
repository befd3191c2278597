import json
import re
import time

import pytest
import torch

from groundup.inference.adjust import adjust_logits
from groundup.inference.constraint import compile_constraint, constraint
from groundup.inference.constraint.vocabulary import TokenTree
from groundup.inference.sampling import SamplingParams, new_generator, sample
from groundup.tokenizer import Tokenizer
from tests.inference.constrained import BYTES, END, fits, random_text

TEXT = 'the cat in the hat {"name": "the cat", "age": 12} é 😀 naïve [1, 2, 3] true false null '


@pytest.fixture(scope="module")
def merged():
    return Tokenizer.train_from_iterator([TEXT] * 3, 340, special_tokens=["<|endoftext|>", "<|end|>"])


SOURCES = [
    ("choice", ["the cat", "the hat", "thé", "😀"]),
    ("regex", r"(the |é+ )*[a-z]{2,4}\d?"),
    ("regex", "[^a]*😀?"),
    ("json_schema", {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}),
    ("json_object", None),
]


@pytest.mark.parametrize(("kind", "source"), SOURCES)
def test_the_mask_is_what_trying_every_token_finds(merged, kind, source):
    """At every step of some texts: a token is allowed where its bytes lead on, an end token where the text may end."""
    ends = set(merged.special_tokens.values())
    for seed in range(4):
        at = compile_constraint(kind, source, merged, ends)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(25):
            tried = []
            for token in range(merged.vocab_size):
                other = at.copy()
                try:
                    other.push(token)
                    tried.append(True)
                except ValueError:
                    tried.append(False)
            mask = at.mask()
            assert mask.tolist() == tried and mask.dtype == torch.bool
            assert at.finished == (not any(tried[t] for t in range(merged.vocab_size) if t not in ends))
            allowed = mask.nonzero().flatten()
            token = int(allowed[torch.randint(len(allowed), (), generator=generator)])
            at.push(token)
            if token in ends:
                break


@pytest.mark.parametrize(("kind", "source"), SOURCES)
def test_random_texts_match(merged, kind, source):
    for seed in range(10):
        text = random_text(compile_constraint(kind, source, merged, {merged.end_of_text}), merged, seed)
        if kind == "choice":
            assert text in source
        elif kind == "regex":
            assert re.fullmatch(source, text, re.ASCII)
        else:
            assert fits(json.loads(text), source or {"type": "object"}, source)


def test_every_choice_comes_up_and_no_other():
    choices = ["a", "ab", "b", "", "é", "e"]
    drawn = {
        random_text(compile_constraint("choice", choices, BYTES, END), BYTES, seed, b"ab\xc3e") for seed in range(99)
    }
    assert drawn == set(choices)


def test_a_thousand_choices():
    choices = [f"number {n} of many {n * n}" for n in range(1_000)]
    at = compile_constraint("choice", choices, BYTES, END)
    for byte in b"number 731 of many 534361":
        at.push(byte)
    assert at.finished and at.accepting


def test_sampling_through_the_logits(merged):
    """As an engine does: adjusted logits, a draw, a push, until the end token comes."""
    generator, params = new_generator(4), SamplingParams(temperature=2.0)
    asking = type("Asking", (), {"prompt": [1], "tokens": [], "params": params})()
    asking.constraint = compile_constraint("regex", "(ab|é){2,5}", merged, {merged.end_of_text})
    while merged.end_of_text not in asking.tokens:
        logits = torch.randn(1, merged.vocab_size + 7, generator=generator)
        (token,) = sample(adjust_logits(logits, [asking]), [params], [generator])
        asking.constraint.push(token)
        asking.tokens.append(token)
    assert re.fullmatch("(ab|é){2,5}", merged.decode(asking.tokens[:-1]))


def test_after_the_end_token_only_end_tokens_may_come():
    at = compile_constraint("regex", "a*", BYTES, END)
    at.push(97)
    assert at.accepting and not at.finished
    at.push(256)
    assert at.finished and at.mask().nonzero().flatten().tolist() == [256]
    at.push(256)
    with pytest.raises(ValueError, match="token 97 cannot come next"):
        at.push(97)


def test_a_wrong_token_changes_nothing_and_a_copy_goes_its_own_way():
    at = compile_constraint("choice", ["ab", "ac"], BYTES, END)
    for token in (98, 256, 999, -1):
        with pytest.raises(ValueError, match=f"token {token} cannot come next"):
            at.push(token)
    at.push(97)
    other = at.copy()
    other.push(98)
    assert other.finished and not at.finished and at.mask().sum() == 2


def test_special_tokens_are_no_text(merged):
    other = merged.special_tokens["<|end|>"]
    at = compile_constraint("regex", r"[\x00-\U0010ffff]*", merged, {merged.end_of_text})
    assert at.mask()[merged.end_of_text] and not at.mask()[other]


def test_compiled_once_for_the_same_source_and_forgotten_in_turn(merged):
    constraint._cache.clear()
    first = compile_constraint("regex", "a{2}", BYTES, END)
    assert compile_constraint("regex", "a{2}", BYTES, {0})._automaton is first._automaton
    assert compile_constraint("regex", "a{2}", merged, {1})._automaton is not first._automaton
    for n in range(constraint.MAX_CACHED):
        compile_constraint("choice", [str(n)], BYTES, END)
    assert len(constraint._cache) == constraint.MAX_CACHED
    assert compile_constraint("regex", "a{2}", BYTES, END)._automaton is not first._automaton


def test_masks_and_tables_are_bounded_and_can_be_made_again(monkeypatch):
    monkeypatch.setattr("groundup.inference.constraint.automaton.MAX_CONFIGURATIONS", 20)
    monkeypatch.setattr("groundup.inference.constraint.automaton.MAX_MASK_BYTES", 300)
    constraint._cache.clear()
    at = compile_constraint("regex", "a{0,200}b", BYTES, END)
    for _ in range(200):
        assert {97, 98} >= set(at.mask().nonzero().flatten().tolist()) and at.mask()[98]
        at.push(97)
    assert at.mask().nonzero().flatten().tolist() == [98]
    assert len(at._automaton._masks) * 33 <= 300
    assert len(at._automaton._configurations) < 40


def test_what_takes_too_long_is_refused_soon():
    """Fifty thousand alternatives and a budget that is soon used up."""
    start = time.monotonic()
    with pytest.raises(ValueError, match="compiling took more than 0.001 s"):
        compile_constraint("regex", "(?:[a-y]|[^b-z]){1000}" * 50, BYTES, END, budget_s=0.001)
    assert time.monotonic() - start < 30


def test_a_mask_that_would_take_too_long_ends_the_request(merged):
    """(a|b)*a(a|b){n} has 2^n states for a deterministic automaton; only those that tokens visit are made."""
    at = compile_constraint("regex", "(a|b)*a(a|b){900}", merged, {merged.end_of_text})
    with pytest.raises(ValueError, match="too ambiguous"):
        at._automaton._spend(10**9)
    for byte in b"ab" * 40:
        at.mask()
        at.push(byte)


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("grammar", "a", "'grammar' is none"),
        ("regexp", "a", "did you mean 'regex'"),
        ("choice", [], "a list of at least one text"),
        ("choice", "ab", "a list of at least one text"),
        ("choice", [1], "texts only"),
        ("choice", ["\ud800"], "surrogates"),
        ("choice", ["x" * 200_000], "200,000 characters"),
        ("regex", 3, "expected a pattern, got int"),
        ("json_schema", 3, "expected an object, true or false, got int"),
        ("json_schema", {"enum": {1}}, "not JSON"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_named(kind, source, message):
    with pytest.raises(ValueError, match=message):
        compile_constraint(kind, source, BYTES, END)
    with pytest.raises(ValueError, match="end_ids is empty"):
        compile_constraint("regex", "a", BYTES, ())
    with pytest.raises(ValueError, match="end token 257 is not in the vocabulary"):
        compile_constraint("regex", "a", BYTES, {257})


def test_the_tree_holds_each_beginning_once():
    tree = TokenTree({0: b"the", 1: b"then", 2: b"to", 3: b"<end>"}, {3}, 4)
    assert len(tree.parents) == 1 + len({"t", "th", "to", "the", "then"})
    written = {}
    for token, node in zip(tree.tokens.tolist(), tree.nodes.tolist(), strict=True):
        data = b""
        while node:
            data, node = bytes([tree.bytes[node]]) + data, int(tree.parents[node])
        written[token] = data
    assert written == {0: b"the", 1: b"then", 2: b"to"}
