"""llama2.c's tokenizer, held to the loop of its run.c: look at all pairs, merge the best, begin again."""

import random
import struct

import pytest

from groundup.tokenizer.llama2c import FIRST_BYTE, FIRST_PIECE, ScoredTokenizer
from groundup.tokenizer.protocol import TextTokenizer
from tests.model.models import path_of

LETTERS = " abcde"


def vocabulary(seed=0, count=60):
    """Letters, and pieces of two to five of them, with scores of which many are equal."""
    chooser = random.Random(seed)
    pieces = dict.fromkeys([*LETTERS, "é"])
    while len(pieces) < count:
        pieces["".join(chooser.choices(LETTERS, k=chooser.choice((2, 2, 3, 4, 5))))] = None
    texts = [b"<0x%02X>" % n for n in range(FIRST_PIECE)] + [piece.encode() for piece in pieces]
    return texts, [0.0] * FIRST_PIECE + [-float(chooser.randrange(12)) for _ in pieces]


def by_run_c(pieces, scores, text):
    ids = {piece: token for token, piece in reversed(list(enumerate(pieces))) if token >= FIRST_PIECE}
    spelled = [b""] * 3 + [bytes([b]) for b in range(256)] + pieces[FIRST_PIECE:]
    tokens = []
    for character in " " + text if text else "":
        data = character.encode()
        tokens += [ids[data]] if data in ids else [b + FIRST_BYTE for b in data]
    while True:
        best = None
        for i in range(len(tokens) - 1):
            made = ids.get(spelled[tokens[i]] + spelled[tokens[i + 1]])
            if made is not None and (best is None or scores[made] > scores[best[1]]):
                best = i, made
        if best is None:
            return tokens
        tokens[best[0] : best[0] + 2] = [best[1]]


@pytest.mark.parametrize("seed", range(6))
def test_the_ids_of_run_c(seed):
    pieces, scores = vocabulary(seed)
    tokenizer, chooser = ScoredTokenizer(pieces, scores), random.Random(seed)
    for _ in range(60):
        text = "".join(chooser.choices(LETTERS + "é你x\n", weights=[8] * 6 + [1] * 4, k=chooser.randrange(40)))
        assert tokenizer.encode(text) == by_run_c(pieces, scores, text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_best_pair_is_not_the_first():
    """By hand: "ab" scores better than " a", so the space stays alone, and then joins the pair."""
    pieces = [b""] * FIRST_PIECE + [b" ", b"a", b"b", b" a", b"ab", b" ab"]
    scores = [0.0] * FIRST_PIECE + [-9.0, -9.0, -9.0, -2.0, -1.0, -5.0]
    assert ScoredTokenizer(pieces, scores).encode("ab") == [FIRST_PIECE + 5]
    assert ScoredTokenizer(pieces, scores).encode("aab") == [FIRST_PIECE + 3, FIRST_PIECE + 4]


def test_it_is_a_text_tokenizer():
    tokenizer = ScoredTokenizer(*vocabulary())
    assert isinstance(tokenizer, TextTokenizer)
    assert tokenizer.encode("") == [] and tokenizer.decode([1, 2]) == ""
    assert tokenizer.decode(tokenizer.encode("\ud800")) == "\ufffd"
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"id {token}: not in the vocabulary"):
            tokenizer.decode([token])


def file_of(pieces, scores):
    entries = (struct.pack("<fi", score, len(piece)) + piece for piece, score in zip(pieces, scores, strict=True))
    return struct.pack("<i", max(map(len, pieces))) + b"".join(entries)


def test_a_file_of_it(tmp_path):
    pieces, scores = vocabulary()
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(file_of(pieces, scores))
    assert ScoredTokenizer.load(path).encode("abé cab") == ScoredTokenizer(pieces, scores).encode("abé cab")
    damaged = {
        file_of(pieces, scores)[:-1]: "damaged",
        file_of(pieces, scores) + b"\0": "damaged",
        file_of(pieces, [float("nan"), *scores[1:]]): "piece 0: .*score nan",
        struct.pack("<ifi", 5, 0.0, -5): "piece 0: length -5",
        struct.pack("<ifi", 5, 0.0, 2**31 - 1): "piece 0: length 2147483647",
        file_of(pieces[:9], scores[:9]): "9 pieces and 9 scores",
        b"": "0 pieces",
    }
    for data, message in damaged.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as caught:
            ScoredTokenizer.load(path)
        assert str(path) in str(caught.value)


def test_the_published_vocabulary():
    """Pinned from the model's own greedy story, which it tells in the pieces that text encodes to."""
    tokenizer = ScoredTokenizer.load(path_of("stories15M.tokenizer.bin"))
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the sunshine."
    ids = [9038, 2501, 263, 931, 29892, 727, 471, 263, 2217, 7826, 4257, 365, 2354, 29889, 2296, 18012, 304, 1708, 5377,
           297, 278, 6575, 845, 457, 29889]  # fmt: skip
    assert tokenizer.vocab_size == 32_000
    assert tokenizer.encode(text) == ids and tokenizer.decode([1, *ids]) == text
    assert tokenizer.encode("\n") == [29871, 13]  # a line feed is no piece: byte 10
    assert tokenizer.decode(tokenizer.encode("  你好 🌍\t")) == "  你好 🌍\t"
