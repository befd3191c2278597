"""What the size of the vocabulary trades: shorter sequences against larger tables at both ends of the model.

Published choices: 37,000 (Vaswani et al. 2017), 40,478 (GPT), 50,257 (GPT-2, often misquoted as 40,257), and 32,000
to 256,000 since. A model's cost per byte of text is its cost per token divided by bytes per token: the blocks get
cheaper with every token that grows longer, the output layer (2 d_model vocab_size FLOPs per token forward) dearer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from groundup.tokenizer.pretokenize import well_formed
from groundup.tokenizer.tokenizer import Tokenizer

PUBLISHED_SIZES = {"Transformer": 37_000, "GPT": 40_478, "GPT-2": 50_257}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cost:
    """FLOPs of a model per token: all of them, those of attention's scores and values, and of the output layer."""

    total: float
    attention: float
    head: float


CostOfToken = Callable[[int, int], Cost]
"""(vocab_size, tokens of context) -> the cost of one token."""


@dataclass(frozen=True)
class SizeRow:
    """One vocabulary size.

    embedding_parameters: rows of the input table, and of the output table where that is its own.
    context_tokens: what a window of the given bytes is in tokens.
    attention_to_bytes: attention's FLOPs on that window against those of a model that reads bytes: tokens per byte,
        squared.
    """

    vocab_size: int
    bytes_per_token: float
    embedding_parameters: int
    context_tokens: int
    flops_per_byte: float
    attention_flops_per_byte: float
    head_flops_per_byte: float
    attention_to_bytes: float


def prefix(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer that training to this smaller size would have given: its first merges.

    Byte-pair merges are learned greedily, so those of a smaller vocabulary are the first ones of a larger one. Ids
    are given anew: bytes, merges, special tokens. ValueError when there is no room for bytes and special tokens, and
    when the tokenizer itself is smaller.
    """
    least, size = 256 + len(tokenizer.special_tokens), len(tokenizer.vocab)
    if not least <= vocab_size <= size:
        raise ValueError(f"vocab_size {vocab_size}: expected {least} (bytes and special tokens) to {size}")
    ordinary = vocab_size - len(tokenizer.special_tokens)
    specials = list(tokenizer.special_tokens)
    if tokenizer.ranked_by_token:
        return Tokenizer(dict(enumerate(_first_tokens(tokenizer, ordinary))), None, specials, tokenizer.pattern)
    single = [bytes([byte]) for byte in range(256)]
    merges = tokenizer.merges[: ordinary - 256]
    tokens = dict.fromkeys([*single, *(left + right for left, right in merges)])
    return Tokenizer(
        dict(enumerate(tokens)), merges, specials, tokenizer.pattern, ignore_merges=tokenizer.ignore_merges
    )


def _first_tokens(tokenizer: Tokenizer, count: int) -> list[bytes]:
    special = set(tokenizer.special_tokens.values())
    return [token for token_id, token in sorted(tokenizer.vocab.items()) if token_id not in special][:count]


def sweep(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    vocab_sizes: Sequence[int],
    *,
    d_model: int,
    cost: CostOfToken,
    context_bytes: int = 4096,
    tied: bool = False,
    progress: Progress | None = None,
) -> list[SizeRow]:
    """Bytes per token and model cost for each size, on one text, with one training: see `prefix`.

    The context is a number of *bytes*, because that is what a reader of the text sees: a larger vocabulary fits it
    into fewer tokens. `cost` is the model's, so that this room needs to know none. `progress` counts sizes.
    """
    texts = [well_formed(text) for text in texts]
    size = sum(len(text.encode()) for text in texts)
    if not size:
        raise ValueError("no text to measure on: expected at least one that is not empty")
    rows = []
    for number, vocab_size in enumerate(sorted(set(vocab_sizes)), start=1):
        smaller = prefix(tokenizer, vocab_size)
        ratio = size / sum(len(smaller.encode(text)) for text in texts)
        context = max(1, round(context_bytes / ratio))
        rows.append(_size_row(vocab_size, ratio, context, d_model * (1 if tied else 2), cost(vocab_size, context)))
        if progress:
            progress(number, len(set(vocab_sizes)))
    return rows


def _size_row(vocab_size: int, ratio: float, context: int, width: int, cost: Cost) -> SizeRow:
    return SizeRow(
        vocab_size=vocab_size,
        bytes_per_token=ratio,
        embedding_parameters=vocab_size * width,
        context_tokens=context,
        flops_per_byte=cost.total / ratio,
        attention_flops_per_byte=cost.attention / ratio,
        head_flops_per_byte=cost.head / ratio,
        attention_to_bytes=ratio**-2,
    )


@dataclass(frozen=True)
class SequenceRow:
    """A window of `context_bytes` read by one tokenizer: attention's FLOPs on it, and their share of the model's."""

    tokenizer: str
    context_bytes: int
    tokens: int
    attention_flops: float
    attention_share: float
    attention_to_bytes: float


def sequence_costs(
    bytes_per_token: dict[str, float], vocab_sizes: dict[str, int], contexts: Sequence[int], cost: CostOfToken
) -> list[SequenceRow]:
    """Why sequence length matters: attention grows with the square of tokens per byte, the rest linearly.

    One row for each tokenizer and number of bytes in the window; `attention_to_bytes` is against reading the same
    window as bytes.
    """
    rows = []
    for context in contexts:
        as_bytes = _window(cost, 256, context)
        for name, ratio in bytes_per_token.items():
            tokens = max(1, round(context / ratio))
            here = _window(cost, vocab_sizes[name], tokens)
            ratios = here.attention / here.total, here.attention / as_bytes.attention
            rows.append(SequenceRow(name, context, tokens, here.attention, *ratios))
    return rows


def _window(cost: CostOfToken, vocab_size: int, tokens: int) -> Cost:
    each = cost(vocab_size, tokens)
    return Cost(tokens * each.total, tokens * each.attention, tokens * each.head)
