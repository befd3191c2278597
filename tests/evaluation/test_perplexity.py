"""Bits per byte: against one forward pass per token, another tokenizer, another library, another harness."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from groundup import presets
from groundup.evaluation import bits_per_byte, perplexity, token_nats
from groundup.evaluation.perplexity import document_windows
from groundup.model import AttentionConfig, BlockConfig, EncoderDecoder, Transformer
from groundup.tokenizer import Tokenizer

BYTES = {i: bytes([i]) for i in range(256)}
END = "<|endoftext|>"
TEXTS = [
    "The cat sat on the mat.",
    "",
    "é",
    "x",
    "A longer document, that needs several windows to be scored.",
]


def byte_tokenizer() -> Tokenizer:
    return Tokenizer(BYTES | {256: END.encode()}, [], {END: 256})


def pair_tokenizer() -> Tokenizer:
    merges = [(b"t", b"h"), (b"th", b"e"), (b"a", b"t")]
    vocab = BYTES | {256 + i: a + b for i, (a, b) in enumerate(merges)}
    return Tokenizer(vocab | {259: END.encode()}, merges, {END: 259})


def tiny(vocab_size: int = 257, context_length: int = 16) -> Transformer:
    return Transformer(
        presets.llama(
            d_model=16,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            vocab_size=vocab_size,
            context_length=context_length,
        )
    )


def naive_nats(model, ids, begin, context, stride):
    """One forward pass per token, with the context that the policy gives it."""
    nats, seen = [], [begin, *ids]
    for i, target in enumerate(ids):
        end = context if i < context else min(context + stride * math.ceil((i + 1 - context) / stride), len(ids))
        history = seen[max(0, end - context) : i + 1]
        logits = model(torch.tensor([history]))[0, -1].double()
        nats.append(float(logits.logsumexp(0) - logits[target]))
    return nats


@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 16), (16, 1), (7, 3), (1, 1), (200, 100)])
def test_equals_the_token_by_token_loop(context, stride):
    model, tokenizer = tiny(), byte_tokenizer()
    result = bits_per_byte(model, tokenizer, TEXTS, context_length=context, stride=stride, batch_size=2)
    with torch.no_grad():
        nats = sum(sum(naive_nats(model, [*text.encode(), 256], 256, context, stride)) for text in TEXTS)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert result.bytes == num_bytes
    assert result.tokens == num_bytes + len(TEXTS)
    assert result.documents == len(TEXTS)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert result.nats_per_token == pytest.approx(nats / result.tokens, rel=1e-5)
    assert result.token_perplexity == pytest.approx(math.exp(nats / result.tokens), rel=1e-4)


def test_each_token_of_each_document():
    model, rng = tiny(), np.random.default_rng(0)
    documents = [rng.integers(0, 257, size, dtype=np.uint16) for size in (40, 0, 1, 17, 16)]
    scores = token_nats(model, documents, begin=256, context_length=16, stride=5, batch_size=3)
    with torch.no_grad():
        for ids, score in zip(documents, scores, strict=True):
            expected = naive_nats(model, [int(i) for i in ids], 256, 16, 5)
            np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_batch_size_and_logit_chunks_change_nothing(batch_size, monkeypatch):
    model, tokenizer = tiny(), byte_tokenizer()
    reference = bits_per_byte(model, tokenizer, TEXTS)
    monkeypatch.setattr(perplexity, "LOGITS_AT_ONCE", 5 * 257)
    other = bits_per_byte(model, tokenizer, TEXTS, batch_size=batch_size)
    assert other.bits_per_byte == pytest.approx(reference.bits_per_byte, rel=1e-6)


def uniform(vocab_size: int) -> Transformer:
    model = tiny(vocab_size)
    torch.nn.init.zeros_(model.head_weight)
    return model


@pytest.mark.parametrize("make", [byte_tokenizer, pair_tokenizer])
def test_a_uniform_model_pays_log2_of_the_vocabulary_per_token(make):
    tokenizer = make()
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in TEXTS)
    result = bits_per_byte(uniform(tokenizer.vocab_size), tokenizer, TEXTS)
    assert result.tokens == tokens
    assert result.bits_per_byte == pytest.approx(math.log2(tokenizer.vocab_size) * tokens / result.bytes)


def test_an_empty_document_costs_one_end_of_text():
    model = uniform(257)
    with_empty = bits_per_byte(model, byte_tokenizer(), ["ab", ""])
    without = bits_per_byte(model, byte_tokenizer(), ["ab"])
    assert with_empty.tokens == without.tokens + 1
    assert with_empty.bytes == without.bytes


def lm_eval_rolling_windows(token_list, prefix_token, max_seq_len, context_len):
    """lm-evaluation-harness's `get_rolling_token_windows`, as its documentation defines it."""
    pred_len = max_seq_len - context_len + 1
    predicted = min(max_seq_len, len(token_list))
    yield [prefix_token, *token_list[: predicted - 1]], token_list[:predicted]
    while predicted < len(token_list):
        window_pred_len = min(len(token_list) - predicted, pred_len)
        end = predicted + window_pred_len
        yield token_list[end - max_seq_len - 1 : end - 1], token_list[end - window_pred_len : end]
        predicted = end


@pytest.mark.parametrize("length", [1, 4, 5, 9, 10, 23])
@pytest.mark.parametrize(("context", "stride"), [(5, 5), (5, 1), (5, 3), (1, 1)])
def test_windows_are_those_of_lm_eval(length, context, stride):
    ids = list(range(100, 100 + length))
    theirs = list(lm_eval_rolling_windows(ids, 0, context, context - stride + 1))
    ours = []
    for w in document_windows(0, length, context, stride):
        ours.append(([0, *ids][w.start : w.end], ids[w.first : w.end]))
    assert ours == theirs


@pytest.mark.parametrize("length", range(0, 30))
def test_every_token_is_scored_once_with_enough_context(length):
    scored = []
    for w in document_windows(7, length, 8, 3):
        assert w.document == 7
        assert w.end - w.start <= 8
        for i in range(w.first, w.end):
            scored.append(i)
            assert i - w.start + 1 >= min(8 - 3 + 1, i + 1)
    assert scored == list(range(length))


def test_equals_transformers_loss_on_the_same_window():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    ours = Transformer(
        presets.llama(d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=257, d_ff=48, context_length=64)
    )
    copy_llama_weights(theirs, ours)
    text = "Windows of one document, no longer than the context."
    ids = torch.tensor([[256, *text.encode(), 256]])
    with torch.no_grad():
        loss = float(theirs(input_ids=ids, labels=ids).loss)
    assert bits_per_byte(ours, byte_tokenizer(), [text]).nats_per_token == pytest.approx(loss, rel=1e-5)


def copy_llama_weights(theirs, ours):
    names = {
        "model.embed_tokens": "embed",
        "model.layers": "blocks",
        "self_attn.q_proj": "mixer.wq",
        "self_attn.k_proj": "mixer.wk",
        "self_attn.v_proj": "mixer.wv",
        "self_attn.o_proj": "mixer.wo",
        "mlp.gate_proj": "ffn.gate",
        "mlp.up_proj": "ffn.up",
        "mlp.down_proj": "ffn.down",
        "input_layernorm": "mixer_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.norm": "final_norm",
        "lm_head": "head",
    }
    state = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = tensor
    ours.load_state_dict(state)


def test_leaves_the_model_in_its_mode_and_without_gradients():
    model, tokenizer = tiny(), byte_tokenizer()
    for training in (True, False):
        model.train(training)
        bits_per_byte(model, tokenizer, ["ab"])
        assert model.training is training
    assert all(p.grad is None for p in model.parameters())


def test_progress_counts_up_to_all_tokens():
    calls = []
    result = bits_per_byte(
        tiny(),
        byte_tokenizer(),
        TEXTS,
        batch_size=1,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == sorted(calls)
    assert calls[-1] == (result.tokens, result.tokens)


def test_the_policy_is_said_with_its_numbers():
    policy = bits_per_byte(uniform(257), byte_tokenizer(), ["ab"], context_length=12, stride=4).policy
    assert "Windows of 12 tokens advance by 4" in policy
    assert "at least 9 tokens of context" in policy
    assert "end_of_text" in policy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": []}, "no text"),
        ({"documents": [""]}, "no text"),
        ({"context_length": 0}, "context_length=0"),
        ({"stride": 0}, "stride=0; expected 1 to"),
        ({"stride": 17}, "stride=17; expected 1 to the context length, 16"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_refuses(arguments, message):
    documents = arguments.pop("documents", ["ab"])
    with pytest.raises(ValueError, match=message):
        bits_per_byte(tiny(), byte_tokenizer(), documents, **arguments)


@pytest.mark.usefixtures("unchecked")
def test_a_model_that_sees_what_it_should_predict_is_refused():
    config = tiny().config
    encoder = Transformer(replace(config, blocks=(BlockConfig(AttentionConfig(2, 2, 4, causal=False), None),)))
    with pytest.raises(ValueError, match="causal=False and sees the tokens to be predicted"):
        bits_per_byte(encoder, byte_tokenizer(), ["ab"])
    pair = EncoderDecoder(presets.vaswani_encoder_decoder(vocab_size=257, d_model=16, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="an EncoderDecoder needs a source"):
        bits_per_byte(pair, byte_tokenizer(), ["ab"])


def test_refuses_the_tokenizer_of_another_model():
    with pytest.raises(ValueError, match="another tokenizer"):
        bits_per_byte(tiny(257), pair_tokenizer(), ["the"])
