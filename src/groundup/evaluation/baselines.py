"""What a language model has to beat, on the same held-out text and in the same unit: bits per UTF-8 byte."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zstandard
from jaxtyping import Integer

from groundup.model.ngram import KneserNey

Ids = Sequence[int] | Integer[np.ndarray, "_"]

# Ends a document for a compressor, as end_of_text does for a model: both pay for it. UTF-8 has no byte 0xff.
END_OF_DOCUMENT = b"\xff"
LONGEST_WINDOW_LOG = 27


@dataclass(frozen=True)
class Baseline:
    """A simple model's `bits_per_byte` on held-out text of so many UTF-8 `bytes`, and how it was measured."""

    name: str
    bits_per_byte: float
    bytes: int
    policy: str


def zstd_bits_per_byte(documents: Sequence[str], level: int = 19) -> Baseline:
    """Bits per byte after zstd, over all documents as one stream.

    The documents are concatenated, each ended by one byte 0xff, and compressed as a single frame with a
    window that spans all of them (up to 128 MiB) and long-distance matching; the frame has no checksum and
    no stored size. Compressing each document alone would flatter the language model, as a short document
    gives zstd nothing to refer to.
    """
    data, size = _joined(documents)
    compressor = zstandard.ZstdCompressor(compression_params=_parameters(level, len(data)))
    return Baseline(
        name=f"zstd_{level}",
        bits_per_byte=8 * len(compressor.compress(data)) / size,
        bytes=size,
        policy=f"zstd level {level} over all held-out text as one stream, window over all of it",
    )


def zstd_with_training_text_bits_per_byte(
    documents: Sequence[str],
    training_documents: Sequence[str],
    level: int = 19,
    *,
    max_training_bytes: int = 2**23,
) -> Baseline:
    """The same with the end of the training text as a raw dictionary, so that zstd too has seen it.

    Only the last `max_training_bytes` serve: at level 19 a dictionary takes a third of a second per MB.
    """
    data, size = _joined(documents)
    past, _ = _joined(training_documents)
    past = past[-max_training_bytes:]
    dictionary = zstandard.ZstdCompressionDict(past, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = _parameters(level, len(data) + len(past))
    compressor = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)
    return Baseline(
        name=f"zstd_{level}_with_training_text",
        bits_per_byte=8 * len(compressor.compress(data)) / size,
        bytes=size,
        policy=f"zstd level {level} over all held-out text, after {len(past):,} bytes of training text",
    )


def unigram_bits_per_byte(
    training: Sequence[Ids], held_out: Sequence[Ids], num_bytes: int, *, vocab_size: int
) -> Baseline:
    """Token frequencies alone, smoothed as Witten and Bell do: P(w) = (c(w) + T / vocab_size) / (N + T).

    N counts the training tokens and T the distinct ones among them, so P sums to one over the vocabulary.
    Documents are token ids with their end_of_text, which is predicted like any other token; `num_bytes` is
    the size of the held-out text in UTF-8. Witten & Bell 1991, method C.
    """
    counts = _counts(training, vocab_size, "training")
    distinct = np.count_nonzero(counts)
    if not distinct:
        raise ValueError("unigram baseline: the training documents hold no token")
    p = (counts + distinct / vocab_size) / (counts.sum() + distinct)
    bits = -float(_counts(held_out, vocab_size, "held-out") @ np.log2(p))
    policy = "token frequencies with Witten-Bell smoothing; end of text after each document"
    return Baseline("unigram", bits / _positive(num_bytes), num_bytes, policy)


def kneser_ney_bits_per_byte(
    training: Sequence[Ids], held_out: Sequence[Ids], num_bytes: int, *, vocab_size: int, order: int = 5
) -> Baseline:
    """Interpolated modified Kneser-Ney over tokens; documents and `num_bytes` as for the unigram."""
    model = KneserNey(order, vocab_size=vocab_size).fit(training)
    bits = -sum(float(model.log2_probs(document).sum()) for document in held_out)
    policy = f"interpolated modified Kneser-Ney of order {order} over tokens; end of text after each document"
    return Baseline(f"kneser_ney_{order}", bits / _positive(num_bytes), num_bytes, policy)


def _joined(documents: Sequence[str]) -> tuple[bytes, int]:
    """The documents as one stream of bytes, and how many of those bytes are text."""
    texts = [document.encode() for document in documents]
    size = sum(map(len, texts))
    return b"".join(text + END_OF_DOCUMENT for text in texts), _positive(size)


def _positive(num_bytes: int) -> int:
    if num_bytes < 1:
        raise ValueError("bits per byte: the documents hold no text; expected at least one byte")
    return num_bytes


def _parameters(level: int, size: int) -> zstandard.ZstdCompressionParameters:
    if not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
        raise ValueError(f"zstd: level={level}; expected 1 to {zstandard.MAX_COMPRESSION_LEVEL}")
    window_log = min(max(size.bit_length(), zstandard.WINDOWLOG_MIN), LONGEST_WINDOW_LOG)
    return zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=size,
        window_log=window_log,
        enable_ldm=True,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )


def _counts(documents: Sequence[Ids], vocab_size: int, what: str) -> Integer[np.ndarray, "vocab"]:
    counts = np.zeros(vocab_size, dtype=np.int64)
    for document in documents:
        ids = np.asarray(document, dtype=np.int64)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            raise ValueError(
                f"unigram baseline: {what} token ids from {ids.min()} to {ids.max()}; expected 0 to {vocab_size - 1}"
            )
        counts += np.bincount(ids, minlength=vocab_size)
    return counts
