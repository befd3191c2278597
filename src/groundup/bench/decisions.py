"""The efficiency decisions of a language model, each as two ways to do the same work that can be held side by side.

A `Pair` holds both ways ready to run, what is counted of either, and a check that both are right: decisions are
only worth comparing where they change the cost and not the answer. What changes the answer too (a window, bytes for
tokens) is checked where both must agree.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from groundup import bundled, kernels, presets
from groundup.accounting import kv_cache_bytes_per_token, training_flops_per_token
from groundup.accounting.flops import visible_pairs
from groundup.corpus import read_documents
from groundup.kernels.cross_entropy import linear_cross_entropy
from groundup.model import AttentionConfig, ModelConfig, Transformer
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.simple import ByteTokenizer
from groundup.train import next_token, precision

FP32_BYTES = 4
CLOSE = 1e-3
"""How far outputs may lie apart that are equal but for the order of their sums in float32."""


@dataclass(frozen=True)
class Sizes:
    """What the pairs are measured on: about the model that a build of ten minutes makes."""

    d_model: int = 256
    num_layers: int = 4
    vocab_size: int = 4096
    batch: int = 4
    context: int = 256
    long_context: int = 2048
    window: int = 256
    num_heads: int = 8
    num_kv_heads: int = 2
    text_bytes: int = 2_000_000
    chunk: int = 256
    compiled: bool = True


@dataclass(frozen=True)
class Pair:
    """Two ways for the same work, `per` units of it in a call (bytes of text, else 1).

    counted: (before, after) by quantity, for what needs no clock.
    agree: whether both are right; run once before anything is timed.
    """

    decision: str
    before: str
    after: str
    work: str
    run_before: Callable[[], object]
    run_after: Callable[[], object]
    agree: Callable[[], bool]
    counted: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    per_before: float = 1.0
    per_after: float = 1.0


def pairs(sizes: Sizes, folder: str) -> Iterator[Pair]:
    """All of them; `folder` is for the text that a tokenizer is trained on."""
    yield tokens_for_bytes(sizes, folder)
    yield grouped_queries(sizes)
    yield window_in_decoding(sizes)
    yield window_in_training(sizes)
    yield half_the_bits(sizes)
    yield chunked_loss(sizes)
    if sizes.compiled:
        yield fused_norm(sizes)


def _llama(sizes: Sizes, **changes: int | None) -> ModelConfig:
    shape = {"vocab_size": sizes.vocab_size, "d_model": sizes.d_model, "num_layers": sizes.num_layers,
             "num_heads": sizes.num_heads, "context_length": sizes.context}  # fmt: skip
    return presets.llama(**(shape | changes))  # type: ignore[arg-type]


def _training(model: Transformer, tokens: Tensor) -> Callable[[], Tensor]:
    """Forward and backward on rows of tokens, without an update: the loss per token."""

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = next_token(model, {"tokens": tokens})
        mean = loss.total / loss.weight
        mean.backward()
        return mean.detach()

    return step


def tokens_for_bytes(sizes: Sizes, folder: str) -> Pair:
    """Byte-pair encoding against bytes: the same text in fewer steps of a model with a larger head."""
    whole = _sample(sizes.text_bytes)
    path, cut = f"{folder}/text.txt", len(whole) * 9 // 10
    with open(path, "w", encoding="utf-8") as file:
        file.write(whole[:cut])
    text = whole[cut:]  # tokens are counted on text that the vocabulary was not made from
    learned, plain = Tokenizer.train(path, sizes.vocab_size), ByteTokenizer()
    ids, raw = learned.encode(text), plain.encode(text)
    per_token = len(raw) / len(ids)
    bpe = Transformer(_llama(sizes, vocab_size=learned.vocab_size))
    by_bytes = Transformer(_llama(sizes, vocab_size=plain.vocab_size))
    row = sizes.context + 1
    flops = [training_flops_per_token(m.config, sizes.context) for m in (by_bytes, bpe)]
    return Pair(
        "byte-pair encoding",
        "a model of bytes",
        f"a vocabulary of {learned.vocab_size:,}",
        "training on a byte of text",
        _training(by_bytes, _rows(raw, sizes.batch, row)),
        _training(bpe, _rows(ids, sizes.batch, row)),
        lambda: plain.decode(raw) == text == learned.decode(ids),
        {"tokens per byte": (1.0, 1 / per_token), "training FLOPs per byte": (flops[0], flops[1] / per_token)},
        per_before=sizes.batch * sizes.context,
        per_after=sizes.batch * sizes.context * per_token,
    )


def _sample(size: int) -> str:
    text = ""
    for document in read_documents(bundled.path()):
        text += document.text
        if len(text) >= size:
            break
    return text[:size]


def _rows(ids: list[int], batch: int, length: int) -> Tensor:
    if len(ids) < batch * length:
        raise ValueError(f"why: {len(ids):,} tokens of text do not fill {batch} rows of {length}; take more text")
    return torch.tensor(ids[: batch * length]).view(batch, length)


def grouped_queries(sizes: Sizes) -> Pair:
    """Grouped-query attention against multi-head attention that computes the same: its heads repeat keys and values."""
    few = Transformer(_llama(sizes, num_kv_heads=sizes.num_kv_heads)).eval()
    many = as_multi_head(few).eval()
    tokens = torch.randint(few.config.vocab_size, (sizes.batch, sizes.long_context))
    steps = [_decoding(model, tokens) for model in (many, few)]
    bytes_held = [kv_cache_bytes_per_token(model.config, torch.float32) for model in (many, few)]
    return Pair(
        "grouped-query attention",
        f"{sizes.num_heads} key heads",
        f"{sizes.num_kv_heads} key heads, the same outputs",
        f"decoding {sizes.batch} rows of {sizes.long_context:,} tokens",
        steps[0],
        steps[1],
        lambda: torch.allclose(steps[0](), steps[1](), atol=CLOSE),
        {"cache bytes per token": (bytes_held[0], bytes_held[1])},
    )


def as_multi_head(model: Transformer) -> Transformer:
    """A model with a key head for each head that computes what this one with fewer does: their weights repeat."""
    config = model.config
    mixer = config.blocks[0].mixer
    assert isinstance(mixer, AttentionConfig), "grouped heads are attention's"
    blocks = tuple(replace(b, mixer=replace(b.mixer, num_kv_heads=mixer.num_heads)) for b in config.blocks)
    many = Transformer(replace(config, blocks=blocks))
    state = model.state_dict()
    for name in [n for n in state if n.endswith(("wk.weight", "wv.weight"))]:
        heads = state[name].unflatten(0, (mixer.num_kv_heads, -1))
        state[name] = heads.repeat_interleave(mixer.num_heads // mixer.num_kv_heads, 0).flatten(0, 1)
    many.load_state_dict(state)
    return many


def _decoding(model: Transformer, tokens: Tensor, *, again: bool = True) -> Callable[[], Tensor]:
    """One more token for each row, on a cache that holds the tokens before; `again` takes it back for the next call.

    A cache with a window has dropped what would have to come back, so it moves on by a token a call.
    """
    caches = model.new_caches(tokens.shape[1] + 1)
    with torch.no_grad():
        model.hidden(tokens[:, :-1], caches=caches)

    def step() -> Tensor:
        with torch.no_grad():
            out = model.hidden(tokens[:, -1:], caches=caches)
        for cache in caches if again else ():
            cache.crop(tokens.shape[1] - 1)
        return out

    return step


def window_in_decoding(sizes: Sizes) -> Pair:
    """A sliding window against the whole context, one token at a time: the cache stays as small as the window."""
    whole = Transformer(_llama(sizes)).eval()
    near = with_window(whole, sizes.window).eval()
    tokens = torch.randint(whole.config.vocab_size, (sizes.batch, sizes.long_context))
    held = [sizes.long_context * kv_cache_bytes_per_token(whole.config, torch.float32)]
    held.append(held[0] * sizes.window // sizes.long_context)
    return Pair(
        "sliding window",
        "all keys",
        f"a window of {sizes.window}",
        f"decoding {sizes.batch} rows of {sizes.long_context:,} tokens",
        _decoding(whole, tokens),
        _decoding(near, tokens, again=False),
        lambda: _equal_inside(whole, near, tokens[:, : sizes.window]),
        {"cache bytes that a token reads, per row": (held[0], held[1])},
    )


def with_window(model: Transformer, window: int) -> Transformer:
    """The same weights, but every layer sees only the last `window` tokens."""
    blocks = tuple(replace(b, mixer=replace(b.mixer, window=window)) for b in model.config.blocks)
    near = Transformer(replace(model.config, blocks=blocks))
    near.load_state_dict(model.state_dict())
    return near


@torch.no_grad()
def _equal_inside(whole: Transformer, near: Transformer, tokens: Tensor) -> bool:
    """Up to the window's length both see everything."""
    return torch.allclose(whole.hidden(tokens), near.hidden(tokens), atol=CLOSE)


def window_in_training(sizes: Sizes) -> Pair:
    """The same over a whole row at once: FLOPs that a kernel may skip, and whether the kernel here does."""
    whole = Transformer(_llama(sizes, num_layers=1)).eval()
    near = with_window(whole, sizes.window).eval()
    tokens = torch.randint(whole.config.vocab_size, (1, sizes.long_context))
    d_head = sizes.d_model // sizes.num_heads
    flops = [4 * sizes.num_heads * d_head * visible_pairs(sizes.long_context, w) for w in (None, sizes.window)]

    def prefill(model: Transformer) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: model.hidden(tokens))

    return Pair(
        "sliding window",
        "all keys",
        f"a window of {sizes.window}",
        f"a forward pass of one block over {sizes.long_context:,} tokens",
        prefill(whole),
        prefill(near),
        lambda: _equal_inside(whole, near, tokens[:, : sizes.window]),
        {"attention FLOPs per layer": (flops[0], flops[1])},
    )


def half_the_bits(sizes: Sizes) -> Pair:
    """bfloat16 activations and products on float32 weights, against float32 throughout."""
    config = _llama(sizes)
    exact = Transformer(config)
    half = Transformer(config)
    half.load_state_dict(exact.state_dict())
    precision.apply(half, "bf16")
    tokens = torch.randint(config.vocab_size, (sizes.batch, sizes.context + 1))
    steps = [_training(model, tokens) for model in (exact, half)]
    return Pair(
        "bfloat16",
        "fp32",
        "bf16 on fp32 weights",
        f"training on {sizes.batch} x {sizes.context} tokens",
        steps[0],
        steps[1],
        lambda: torch.allclose(steps[0](), steps[1](), rtol=1e-2),
        {"bytes of an activation": (FP32_BYTES, 2)},
    )


def chunked_loss(sizes: Sizes) -> Pair:
    """Head and cross-entropy a few rows at a time, against all logits at once."""
    rows = sizes.batch * sizes.context
    hidden = torch.randn(rows, sizes.d_model, requires_grad=True)
    weight = (torch.randn(sizes.vocab_size, sizes.d_model) / sizes.d_model**0.5).requires_grad_()
    targets = torch.randint(sizes.vocab_size, (rows,))

    def gradients(loss: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(loss(), (hidden, weight))

    before = gradients(lambda: kernels.cross_entropy(hidden @ weight.T, targets)[0])
    after = gradients(lambda: linear_cross_entropy(hidden, weight, targets, chunk=sizes.chunk)[0])
    return Pair(
        "fused head and loss",
        "all logits at once",
        f"{sizes.chunk} rows at a time",
        f"{rows:,} rows, vocabulary {sizes.vocab_size:,}, with gradients",
        before,
        after,
        lambda: all(torch.allclose(a, b, atol=CLOSE) for a, b in zip(before(), after(), strict=True)),
        {"bytes of logits": (FP32_BYTES * rows * sizes.vocab_size, FP32_BYTES * sizes.chunk * sizes.vocab_size)},
    )


def fused_norm(sizes: Sizes) -> Pair:
    """RMSNorm as one compiled pass each way, against operation by operation."""
    rows = 4 * sizes.batch * sizes.context
    x = torch.randn(rows, sizes.d_model, requires_grad=True)
    weight = torch.randn(sizes.d_model, requires_grad=True)
    compiled = torch.compile(kernels.rmsnorm, dynamic=False)

    def gradients(norm: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(norm(x, weight).square().sum(), (x, weight))

    before, after = gradients(kernels.rmsnorm), gradients(compiled)
    return Pair(
        "fused RMSNorm",
        "operation by operation",
        "compiled",
        f"{rows:,} rows of {sizes.d_model}, with gradients",
        before,
        after,
        lambda: all(torch.allclose(a, b, rtol=CLOSE, atol=CLOSE) for a, b in zip(before(), after(), strict=True)),
    )
