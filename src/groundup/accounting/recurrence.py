"""FLOPs of recurrent mixers in the form that runs: chunks for a sequence, the recurrence for a single token.

Unlike attention's, these grow linearly with the length: each token meets those of its own chunk, and one state.
Products with parameters are of kind "matmul", products between tokens and states of kind "attention". The triangular
systems of the delta rule are counted as elementwise work: they are solved by substitution, not on a matrix unit.

Backward, a product costs twice as much, once for each factor, but for these: the first state is constant, the last one
is read by nobody, and the gradient of a triangular system is a system and a product.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from groundup.kernels import chunk_length
from groundup.model import GatedDeltaConfig, GatedLinearConfig, LSTMConfig, Mamba2Config, NeuralNgramConfig

RecurrentConfig = GatedLinearConfig | Mamba2Config | GatedDeltaConfig | LSTMConfig | NeuralNgramConfig


class Row(NamedTuple):
    """As `flops.Operation`; `backward` are the FLOPs of the backward pass where they are not twice the forward ones."""

    name: str
    kind: Literal["matmul", "attention", "elementwise"]
    flops: int
    backward: int | None = None


# FLOPs per element, counting an exponential, a root or a division as one.
DECAY_FLOPS = 6
NORM_AND_GATE_FLOPS = 9
CELL_FLOPS = 17
TANH_FLOPS = 4


def recurrent_rows(mixer: RecurrentConfig, d_model: int, seq: int, batch: int, causal: bool) -> Iterator[Row]:
    """One for each operation; `causal` as for `accounting.ledger`."""
    match mixer:
        case GatedLinearConfig():
            yield from _gated_linear(mixer, d_model, seq, batch, causal)
        case Mamba2Config():
            yield from _mamba2(mixer, d_model, seq, batch, causal)
        case GatedDeltaConfig():
            yield from _gated_delta(mixer, d_model, seq, batch, causal)
        case LSTMConfig():
            yield from _lstm(mixer, d_model, batch, seq)
        case NeuralNgramConfig():
            yield from _neural_ngram(mixer, d_model, batch * seq)


def _gated_linear(mixer: GatedLinearConfig, d_model: int, seq: int, batch: int, causal: bool) -> Iterator[Row]:
    tokens, d_keys, d_values = batch * seq, mixer.num_heads * mixer.d_key, mixer.num_heads * mixer.d_value
    yield _product("wq", tokens, d_model, d_keys)
    yield _product("wk", tokens, d_model, d_keys)
    yield _product("wv", tokens, d_model, d_values)
    decays = {"channel": d_keys, "head": mixer.num_heads}.get(mixer.decay, 0)
    if mixer.decay == "channel":
        yield _product("decay_down", tokens, d_model, mixer.rank)
    if decays:
        yield _product("decay_up", tokens, mixer.rank if mixer.decay == "channel" else d_model, decays)
        yield Row("decay", "elementwise", DECAY_FLOPS * tokens * decays)
    d_value = mixer.d_value + (mixer.features == "elu")
    by_channel = mixer.decay == "channel" and mixer.d_key > 1
    sizes = (mixer.num_heads, mixer.num_heads, mixer.d_key, d_value)
    yield from _scan(*sizes, seq, batch, causal, by_channel)
    if mixer.output_gate:
        yield _product("wz", tokens, d_model, d_values)
        yield Row("gated_norm", "elementwise", NORM_AND_GATE_FLOPS * tokens * d_values)
    yield _product("wo", tokens, d_values, d_model)


def _mamba2(mixer: Mamba2Config, d_model: int, seq: int, batch: int, causal: bool) -> Iterator[Row]:
    tokens = batch * seq
    yield _product("in_proj", tokens, d_model, mixer.d_inner + mixer.d_conv + mixer.num_heads)
    yield _convolution(tokens, mixer.d_conv, mixer.conv_kernel)
    yield Row("decay", "elementwise", DECAY_FLOPS * tokens * mixer.num_heads)
    yield from _scan(mixer.num_groups, mixer.num_heads, mixer.d_state, mixer.d_head, seq, batch, causal)
    yield Row("skip", "elementwise", 3 * tokens * mixer.d_inner)  # dt x, and D x added
    yield Row("gated_norm", "elementwise", NORM_AND_GATE_FLOPS * tokens * mixer.d_inner)
    yield _product("out_proj", tokens, mixer.d_inner, d_model)


def _gated_delta(mixer: GatedDeltaConfig, d_model: int, seq: int, batch: int, causal: bool) -> Iterator[Row]:
    tokens, heads, d_key, d_value = batch * seq, mixer.num_heads, mixer.d_key, mixer.d_value
    for name, width in (("wq", mixer.d_keys), ("wk", mixer.d_keys), ("wv", mixer.d_values), ("wz", mixer.d_values)):
        yield _product(name, tokens, d_model, width)
    yield _product("wa", tokens, d_model, heads)
    yield _product("wb", tokens, d_model, heads)
    yield _convolution(tokens, 2 * mixer.d_keys + mixer.d_values, mixer.conv_kernel)
    yield Row("decay", "elementwise", DECAY_FLOPS * tokens * heads)
    if seq > 1:
        pairs, padded = _pairs(seq, batch, causal)
        groups, chunks = mixer.num_key_heads or heads, _chunks(seq)
        yield Row("overlaps", "attention", 2 * pairs * groups * d_key)
        yield Row("solve", "elementwise", pairs * heads * (d_key + d_value))
        yield Row("solve_gradient", "attention", 0, 2 * pairs * heads * (d_key + d_value))
        reads = 2 * padded * heads * d_key * d_value
        yield Row("read_keys", "attention", reads, reads * (2 * chunks - 1) // chunks)
        for row in _scan(groups, heads, d_key, d_value, seq, batch, causal):
            # Here each chunk writes by a product of its own, and the last one is left out of the backward pass.
            is_write = row.name == "write_state"
            yield row._replace(backward=2 * row.flops * (chunks - 1) // chunks) if is_write else row
    else:
        yield Row("read_keys", "attention", 2 * tokens * heads * d_key * d_value)
        yield from _step(heads, d_key, d_value, tokens)
    yield Row("gated_norm", "elementwise", NORM_AND_GATE_FLOPS * tokens * mixer.d_values)
    yield _product("wo", tokens, mixer.d_values, d_model)


def _lstm(mixer: LSTMConfig, d_model: int, batch: int, seq: int) -> Iterator[Row]:
    tokens = batch * seq
    yield _product("wx", tokens, d_model, 4 * mixer.d_hidden)
    again = _product("wh", tokens, mixer.d_hidden, 4 * mixer.d_hidden)
    yield again._replace(backward=2 * again.flops - again.flops // seq)
    yield Row("cell", "elementwise", CELL_FLOPS * tokens * mixer.d_hidden)
    yield _product("wo", tokens, mixer.d_hidden, d_model)


def _neural_ngram(mixer: NeuralNgramConfig, d_model: int, tokens: int) -> Iterator[Row]:
    yield _product("wh", tokens, mixer.reach * d_model, mixer.d_hidden)
    yield Row("tanh", "elementwise", TANH_FLOPS * tokens * mixer.d_hidden)
    yield _product("wo", tokens, mixer.d_hidden, d_model)
    if mixer.direct:
        yield _product("direct", tokens, mixer.reach * d_model, d_model)


def _scan(
    groups: int, heads: int, d_key: int, d_value: int, seq: int, batch: int, causal: bool, by_channel: bool = False
) -> Iterator[Row]:
    """Within chunks, scores per group (per head where each channel decays by itself) and values per head; and what
    each token reads from the state before its chunk and adds to the one after it."""
    if seq == 1:
        yield from _step(heads, d_key, d_value, batch)
        return
    pairs, padded = _pairs(seq, batch, causal)
    scores = 2 * pairs * (heads if by_channel else groups) * d_key
    if by_channel and not causal:
        # Halves against halves leave out what is above the diagonal; the diagonal itself is elementwise.
        size = chunk_length(seq)
        scores = padded * (size - 1) * heads * d_key
    yield Row("scores", "attention", scores)
    yield Row("values", "attention", 2 * pairs * heads * d_value)
    states, alone = 2 * padded * heads * d_key * d_value, _chunks(seq) == 1
    yield Row("read_state", "attention", states, states if alone else None)
    yield Row("write_state", "attention", states, 0 if alone else None)


def _step(heads: int, d_key: int, d_value: int, tokens: int) -> Iterator[Row]:
    yield Row("read_state", "attention", 2 * tokens * heads * d_key * d_value)
    yield Row("write_state", "elementwise", 3 * tokens * heads * d_key * d_value)  # an outer product, and the decay


def _pairs(seq: int, batch: int, causal: bool) -> tuple[int, int]:
    """(pairs of tokens within chunks, tokens): the useful ones, or with those that fill chunks and are masked."""
    size = chunk_length(seq)
    whole, rest = divmod(seq, size)
    if causal:
        return batch * (whole * size * (size + 1) + rest * (rest + 1)) // 2, batch * seq
    return batch * _chunks(seq) * size * size, batch * _chunks(seq) * size


def _chunks(seq: int) -> int:
    return -(-seq // chunk_length(seq))


def _product(name: str, tokens: int, d_in: int, d_out: int) -> Row:
    return Row(name, "matmul", 2 * tokens * d_in * d_out)


def _convolution(tokens: int, channels: int, kernel: int) -> Row:
    return Row("convolution", "elementwise", (2 * kernel + 4) * tokens * channels)
