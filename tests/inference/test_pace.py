"""Times of answers, and the FLOPs and bytes that they are held against: by hand for a small model."""

import pytest
import torch

from groundup import presets
from groundup.accounting import Ceiling
from groundup.inference import Engine
from groundup.inference.decode import CompiledDecoder
from groundup.inference.pace import Pace, pace, step_bytes
from groundup.inference.sequence import Completion
from groundup.model import Transformer
from groundup.tokenizer import Tokenizer

LAYERS, WIDTH, INNER, VOCAB = 2, 16, 32, 270
MATRICES = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
NORMS = WIDTH * (2 * LAYERS + 1)
DEVICE = Ceiling("a device", 1e9, 1e8)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_from_iterator(["the cat in the hat"] * 9, VOCAB, ["<|endoftext|>"])


def engine_of(tokenizer, page_size=4, **settings):
    config = presets.llama(
        d_model=WIDTH, num_layers=LAYERS, num_heads=2, d_ff=INNER, vocab_size=VOCAB, context_length=64
    )
    return Engine(Transformer(config), tokenizer, "cpu", page_size=page_size, **settings)


def test_tokens_have_times_in_their_order(tokenizer):
    engine = engine_of(tokenizer)
    answer = engine.generate("the cat", max_tokens=5, temperature=0)
    assert answer.timing is not None
    assert answer.timing.arrived < answer.timing.first_token < answer.timing.last_token
    (one,) = engine.generate(["the cat"], max_tokens=1)
    assert one.timing is not None and one.timing.first_token == one.timing.last_token
    assert engine.generate("the cat", max_tokens=0).timing is None


def test_equal_answers_are_equal_whenever_they_came(tokenizer):
    engine = engine_of(tokenizer)
    first, second = (engine.generate("the cat", max_tokens=3, temperature=0) for _ in range(2))
    assert first == second and first.timing != second.timing


def test_the_flops_of_a_prompt_and_the_bytes_of_a_step_by_hand(tokenizer):
    engine = engine_of(tokenizer)
    prompt = engine.tokenizer.encode("the cat in the hat")
    answers = engine.samples(prompt, 2, max_tokens=4, temperature=0)
    found = pace(engine, answers, engine.stats().prompt_tokens - engine.stats().cached_prompt_tokens)
    n = len(prompt)
    pairs = n * (n + 1) // 2
    attention = LAYERS * (4 * pairs * WIDTH)
    matmuls = 2 * n * MATRICES + 2 * WIDTH * VOCAB  # the head sees the last token alone
    share = found.computed_tokens / n
    assert found.prefill_flops == pytest.approx(share * (matmuls + attention), rel=0.02)  # softmax is counted, too
    context = n + 4
    keys_and_values = LAYERS * 2 * context * WIDTH * 4
    weights = (MATRICES + NORMS + VOCAB * WIDTH) * 4
    assert found.step_bytes == pytest.approx(weights + 2 * keys_and_values, rel=0.02)  # queries move as well
    assert (found.answers, found.answer_tokens, found.prompt_tokens) == (2, 8, n)


def test_eight_bits_are_fewer_bytes(tokenizer):
    plain = engine_of(tokenizer)
    packed = engine_of(tokenizer, 16, decoder=lambda model, store: CompiledDecoder.build(model, store, "int8"))
    for engine in (plain, packed):
        engine.generate("the cat", max_tokens=2)
    assert plain.core.weight_bytes is None
    assert packed.core.weight_bytes is not None
    assert packed.core.weight_bytes == packed.core.execution.fast_decoder().weight_bytes  # type: ignore[union-attr]
    difference = step_bytes(plain, 1, 8) - step_bytes(packed, 1, 8)
    assert difference == (MATRICES + NORMS + VOCAB * WIDTH) * 4 - packed.core.weight_bytes


def test_shares_and_words():
    found = Pace(100, 100, 2, 20, first_token=0.5, per_token=0.01, prefill_flops=10**8, step_bytes=500_000)
    assert found.mfu(DEVICE) == pytest.approx(0.2) and found.mbu(DEVICE) == pytest.approx(0.5)
    assert "500.0 ms to the first token, 200 tokens/s, 0 GFLOP/s (MFU 0.20)" in found.lines(DEVICE)[0]
    assert "10.00 ms a token, 200.0 tokens/s, 0.1 GB/s (MBU 0.50)" in found.lines(DEVICE)[1]
    assert found.record(DEVICE)["mbu"] == pytest.approx(0.5)
    alone = Pace(100, 36, 1, 1, 0.5, None, 10**8, 500_000)
    assert "64 of all known" in alone.lines(DEVICE)[0] and "no second one" in alone.lines(DEVICE)[1]
    assert alone.mbu(DEVICE) is None


def test_no_token_has_no_pace(tokenizer):
    with pytest.raises(ValueError, match="no answer has a token"):
        pace(engine_of(tokenizer), [Completion("", [], None, "length", 3)], 3)


def test_a_table_of_embeddings_is_not_read_unless_it_is_the_head(tokenizer):
    config = presets.llama(
        d_model=WIDTH, num_layers=LAYERS, num_heads=2, d_ff=INNER, vocab_size=VOCAB, tie_embeddings=True
    )
    tied = Engine(Transformer(config), tokenizer, "cpu", dtype=torch.float32)
    assert step_bytes(tied, 1, 8) == step_bytes(engine_of(tokenizer), 1, 8)
