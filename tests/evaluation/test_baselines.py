"""Baselines: worked examples, and streams that really hold the text."""

import numpy as np
import pytest
import zstandard

from groundup.evaluation import (
    kneser_ney_bits_per_byte,
    unigram_bits_per_byte,
    zstd_bits_per_byte,
    zstd_with_training_text_bits_per_byte,
)
from groundup.evaluation.baselines import END_OF_DOCUMENT, _joined, _parameters
from groundup.model.ngram import KneserNey

SENTENCES = [f"The {a} {b} the {c}.\n" for a in ("cat", "dog") for b in ("sees", "bites") for c in ("rat", "hat")]


def test_zstd_counts_the_bytes_of_one_frame():
    documents = ["naïve 中文 text " * 20, "", "second " * 9]
    size = sum(len(d.encode()) for d in documents)
    baseline = zstd_bits_per_byte(documents)
    assert (baseline.name, baseline.bytes) == ("zstd_19", size)
    data = b"".join(d.encode() + END_OF_DOCUMENT for d in documents)
    frame = zstandard.ZstdCompressor(compression_params=_parameters(19, len(data))).compress(data)
    assert zstandard.ZstdDecompressor().decompress(frame, max_output_size=len(data)) == data
    assert baseline.bits_per_byte == pytest.approx(8 * len(frame) / size)


def test_zstd_window_reaches_over_all_the_text():
    # The same incompressible 3 MB twice: within reach, the second copy is free.
    noise = np.random.default_rng(0).integers(32, 127, 3_000_000, dtype=np.uint8).tobytes().decode()
    once = zstd_bits_per_byte([noise], level=1).bits_per_byte
    assert zstd_bits_per_byte([noise, noise], level=1).bits_per_byte < 0.51 * once


def test_training_text_helps_zstd_and_the_frame_decodes_with_it():
    documents, training = ["".join(SENTENCES[:2])], SENTENCES[2:]
    alone = zstd_bits_per_byte(documents)
    helped = zstd_with_training_text_bits_per_byte(documents, training)
    assert helped.name == "zstd_19_with_training_text"
    assert helped.bits_per_byte < 0.7 * alone.bits_per_byte
    past = _joined(training)[0]
    dictionary = zstandard.ZstdCompressionDict(past, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    data = _joined(documents)[0]
    parameters = _parameters(19, len(data) + len(past))
    frame = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(data)
    assert helped.bits_per_byte == pytest.approx(8 * len(frame) / helped.bytes)
    reader = zstandard.ZstdDecompressor(dict_data=dictionary)
    assert reader.decompress(frame, max_output_size=len(data)) == data


def test_training_text_is_cut_to_its_end():
    documents, training = ["".join(SENTENCES[:2])], ["x" * 5000, *SENTENCES[2:]]
    cut = zstd_with_training_text_bits_per_byte(documents, training, max_training_bytes=150)
    assert "150 bytes" in cut.policy
    nothing = zstd_with_training_text_bits_per_byte(documents, ["x"], max_training_bytes=1)
    assert cut.bits_per_byte < nothing.bits_per_byte


def test_unigram_by_hand():
    # c = 3, 1, 0, 0 of N = 4, T = 2, V = 4: P = (c + 1/2) / 6.
    baseline = unigram_bits_per_byte([[0, 0], [0, 1]], [[0, 1], [2]], 10, vocab_size=4)
    bits = -np.log2(3.5 / 6) - np.log2(1.5 / 6) - np.log2(0.5 / 6)
    assert baseline.bits_per_byte == pytest.approx(bits / 10)
    assert baseline.bytes == 10


def test_unigram_sums_to_one():
    each = [unigram_bits_per_byte([[5, 5, 6, 0]], [[token]], 1, vocab_size=9).bits_per_byte for token in range(9)]
    assert sum(2.0**-bits for bits in each) == pytest.approx(1)


def test_kneser_ney_is_the_models_sum_over_bytes():
    training, held_out = [[0, 1, 2, 9], [1, 2, 0, 9]], [np.array([0, 1, 9], dtype=np.uint16), [2, 9]]
    baseline = kneser_ney_bits_per_byte(training, held_out, 7, vocab_size=10, order=3)
    model = KneserNey(3, vocab_size=10).fit(training)
    bits = -(model.log2_probs(held_out[0]).sum() + model.log2_probs(held_out[1]).sum())
    assert baseline.bits_per_byte == pytest.approx(bits / 7)
    assert baseline.name == "kneser_ney_3"


def test_the_order_that_any_text_gives():
    """Unigrams lose to a compressor, which loses to n-grams, as on any regular text."""
    ids = [[*s.encode(), 256] for s in SENTENCES * 4]
    size = sum(map(len, SENTENCES))
    unigram = unigram_bits_per_byte(ids, ids[: len(SENTENCES)], size, vocab_size=257)
    five = kneser_ney_bits_per_byte(ids, ids[: len(SENTENCES)], size, vocab_size=257)
    assert unigram.bits_per_byte > zstd_bits_per_byte(SENTENCES).bits_per_byte > five.bits_per_byte


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zstd_bits_per_byte([]), "no text"),
        (lambda: zstd_bits_per_byte(["", ""]), "no text"),
        (lambda: zstd_bits_per_byte(["a"], level=23), "level=23; expected 1 to 22"),
        (lambda: zstd_with_training_text_bits_per_byte(["a"], []), "no text"),
        (lambda: unigram_bits_per_byte([], [[0]], 1, vocab_size=2), "no token"),
        (lambda: unigram_bits_per_byte([[0]], [[2]], 1, vocab_size=2), "held-out token ids from 2 to 2"),
        (lambda: unigram_bits_per_byte([[0]], [[1]], 0, vocab_size=2), "no text"),
        (lambda: kneser_ney_bits_per_byte([[0]], [[1]], 0, vocab_size=2), "no text"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
