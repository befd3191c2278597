"""The split: by documents where possible, by the end of a document where not, and never both sides."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup import bundled
from groundup.corpus import Document, read_documents, split_held_out


def words(count, seed=0):
    random.seed(seed)
    return " ".join("".join(random.choices("abcdefgh", k=5)) for _ in range(count))


def many(count, size=300):
    return [Document(words(size, i), f"d{i}") for i in range(count)]


def size(documents):
    return sum(len(d.text.encode()) for d in documents)


def test_whole_documents():
    documents = many(400)
    train, held_out, note = split_held_out(documents, fraction=0.1)
    assert note is None
    assert 0.09 < size(held_out) / size(documents) < 0.12
    assert sorted(d.source for d in train + held_out) == sorted(d.source for d in documents)


def test_the_choice_depends_on_the_texts_and_the_seed_only():
    documents = many(200)
    held_out = {d.source for d in split_held_out(documents).held_out}
    assert {d.source for d in split_held_out(documents[::-1]).held_out} == held_out
    assert {d.source for d in split_held_out(documents, seed=1).held_out} != held_out


@settings(max_examples=40)
@given(st.lists(st.integers(0, 40), min_size=60, max_size=120), st.integers(0, 3))
def test_copies_stay_together_and_nothing_is_lost(numbers, seed):
    documents = [Document(words(100, n), f"{i}") for i, n in enumerate(numbers)]
    train, held_out, note = split_held_out(documents, fraction=0.2, seed=seed)
    assert train and held_out
    assert not {d.text for d in train} & {d.text for d in held_out}
    assert size(train) + size(held_out) == size(documents)
    if note is None:
        assert len(train) + len(held_out) == len(documents)
        assert 0.5 <= size(held_out) / (0.2 * size(documents)) <= 1.5


def test_a_small_text_gives_a_larger_share():
    assert 20_000 <= size(split_held_out(many(200)).held_out) < 30_000  # 5 % would be 18,000
    documents = many(30)
    assert 0.1 <= size(split_held_out(documents).held_out) / size(documents) <= 0.3


def test_one_long_document_is_cut_at_a_paragraph():
    paragraphs = [words(60, i) for i in range(2000)]
    text = "\n\n".join(paragraphs)
    train, held_out, note = split_held_out([Document(text, "book.txt", {"year": 1851})])
    assert train[0].text + held_out[0].text == text
    assert train[0].text.endswith("\n\n") and held_out[0].text.split("\n\n")[0] in paragraphs
    assert 0.04 < len(held_out[0].text) / len(text) < 0.06
    assert held_out[0].metadata == {"year": 1851}
    assert note is not None and "1 document" in note and "book.txt" in note


@pytest.mark.parametrize("text", ["x" * 10_000, "né" * 5_000, "你好" * 3_000, "😀" * 3_000, "a b" * 3_000])
def test_a_text_without_paragraphs_is_cut_between_characters(text):
    train, held_out, _ = split_held_out([Document(text, "a")])
    assert train[0].text + held_out[0].text == text
    assert 0.1 < size(held_out) / size(train + held_out) < 0.3


def test_few_documents_give_their_ends():
    documents = many(5, size=5_000)
    train, held_out, note = split_held_out(documents)
    assert len(train) == 5
    assert size(train) + size(held_out) == size(documents)
    assert all(any(d.source == h.source and d.text.endswith(h.text) for d in documents) for h in held_out)
    assert note is not None and "only 5 different documents" in note
    assert 15_000 < size(held_out) < 25_000


def test_one_document_that_is_most_of_the_text():
    documents = [*many(100, size=10), Document(words(20_000), "large")]
    _, held_out, note = split_held_out(documents)
    assert [d.source for d in held_out] == ["large"]
    assert note is not None and "unequal" in note


def test_copies_of_one_document_are_all_cut():
    text = "\n\n".join(words(50, i) for i in range(100))
    train, held_out, _ = split_held_out([Document(text, str(i)) for i in range(30)])
    assert len({d.text for d in train}) == 1
    assert not train[0].text.endswith(held_out[0].text)


def test_too_little_text():
    with pytest.raises(ValueError, match="1,999 bytes of text in 1 document: .*at least 2,000"):
        split_held_out([Document("x" * 1_999, "a")])
    with pytest.raises(ValueError, match="0 bytes"):
        split_held_out([])
    assert split_held_out([Document("x" * 2_000, "a")]).held_out


@pytest.mark.parametrize("fraction", [0.0, -0.1, 0.6, float("nan")])
def test_a_fraction_that_makes_no_sense(fraction):
    with pytest.raises(ValueError, match="hold out"):
        split_held_out(many(30), fraction=fraction)


def test_the_bundled_corpus_is_split_by_documents():
    documents = list(read_documents(bundled.path()))
    train, held_out, note = split_held_out(documents)
    assert note is None and len(train) + len(held_out) == 233
    assert 0.045 < size(held_out) / size(documents) < 0.075
