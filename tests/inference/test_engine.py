import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from groundup import presets
from groundup.accounting import ledger
from groundup.inference import Engine, SamplingParams
from groundup.model import CountingCache, EncoderDecoder, LearnedPositions, Transformer
from groundup.model.pretrained import save_pretrained
from groundup.tokenizer import Tokenizer

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_from_iterator(["the cat in the hat and the bat"], 268, special_tokens=SPECIAL)


def new_model(vocab, preset=presets.llama, context_length=48):
    options = dict(num_kv_heads=2) if preset is presets.llama else {}
    config = preset(vocab_size=vocab, d_model=32, num_layers=2, num_heads=4, context_length=context_length, **options)
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def model(tokenizer):
    return new_model(tokenizer.vocab_size)


@pytest.fixture
def engine(model, tokenizer):
    return Engine(model, tokenizer)


def says(monkeypatch, engine, ids):
    """Make the engine's model choose these ids in order."""
    script = iter(ids)

    def logits(hidden):
        row = torch.full((hidden.shape[0], engine.model.config.vocab_size), -9.0)
        row[:, next(script)] = 9.0
        return row

    monkeypatch.setattr(engine.model, "logits", logits)


@torch.no_grad()
def greedy_by_recomputing(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-count:]


@pytest.mark.parametrize("preset", [presets.llama, presets.qwen3, presets.gpt2])
def test_greedy_equals_recomputing_and_transformers(tmp_path, tokenizer, preset):
    model = new_model(tokenizer.vocab_size, preset)
    prompts = [tokenizer.encode("the cat"), [5, 6, 7], [9]]
    ours = [Engine(model, tokenizer).generate(p, GREEDY).tokens for p in prompts]
    together: Any = Engine(model, tokenizer).generate(prompts, GREEDY)
    assert [c.tokens for c in together] == ours
    save_pretrained(model, None, tmp_path)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ends = {tokenizer.special_tokens["<|endoftext|>"], tokenizer.special_tokens["<|end|>"]}
    for prompt, tokens in zip(prompts, ours, strict=True):
        hugging = theirs.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=list(ends),
            pad_token_id=0,
        )
        assert tokens == hugging[0, len(prompt) :].tolist()
        assert tokens == greedy_by_recomputing(model, prompt, len(tokens))


def test_a_request_does_not_depend_on_its_neighbours(model, tokenizer):
    prompts = ["the cat", "", [3] * 30, "in the hat and the bat", [7]]
    settings = [SamplingParams(max_tokens=4 * i + 2, seed=i, top_p=0.9, logprobs=1) for i in range(5)]
    alone: list[Any] = [Engine(model, tokenizer).generate(p, s) for p, s in zip(prompts, settings, strict=True)]
    for batch_size in (1, 2, 5):
        together: Any = Engine(model, tokenizer, batch_size=batch_size).generate(prompts, settings)
        assert [c.tokens for c in together] == [c.tokens for c in alone]
        for a, b in zip(together, alone, strict=True):
            assert [x.logprob for x in a.logprobs] == pytest.approx([x.logprob for x in b.logprobs], abs=1e-5)


def test_prompts_longer_than_a_prefill_chunk(model, tokenizer, monkeypatch):
    prompts = [list(range(40)), [1, 2, 3], list(range(17))]
    plain = Engine(model, tokenizer).generate(prompts, GREEDY)
    equal = Engine(model, tokenizer).generate([prompts[0]], GREEDY)
    monkeypatch.setattr("groundup.inference.engine.PREFILL_CHUNK", 7)
    assert Engine(model, tokenizer).generate(prompts, GREEDY) == plain
    assert Engine(model, tokenizer).generate([prompts[0]], GREEDY) == equal


def test_logprobs_equal_the_training_forward(engine, model):
    done: Any = engine.generate([5, 6, 7], max_tokens=10, seed=1, logprobs=3)
    with torch.no_grad():
        logp = model(torch.tensor([[5, 6, 7, *done.tokens]])).log_softmax(-1)[0, 2:-1]
    for row, token, entry in zip(logp, done.tokens, done.logprobs, strict=True):
        assert entry.token == token
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-5)
        assert [t for t, _ in entry.top] == row.topk(3).indices.tolist()
    assert engine.generate([5], GREEDY).logprobs is None


def test_every_token_is_computed_once(engine, model, monkeypatch):
    """A prompt of p tokens and an answer of n take p + n - 1 positions, against p + ... + (p + n - 1)."""
    computed = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda t, p, c: computed.append(t.numel()) or hidden(t, p, c))
    done = engine.generate([5, 6, 7, 8], GREEDY)
    assert sum(computed) == 4 + len(done.tokens) - 1
    assert computed[0] == 4 and set(computed[1:]) == {1}


def test_cached_generation_multiplies_as_much_as_one_causal_pass():
    """torch's counter against the ledger's causal count; recomputing every prefix would take a multiple."""
    model, n, endless = new_model(256), 24, Tokenizer.train_from_iterator(["a"], 256, special_tokens=[])
    model.compute_dtype = torch.float64  # attention as plain matmuls: the counter does not see the fused CPU kernel
    with FlopCounterMode(display=False) as cached:
        done = Engine(model, endless).generate([5], GREEDY, max_tokens=n)
    assert len(done.tokens) == n
    assert cached.get_total_flops() == sum(row.flops for row in ledger(model.config, n) if row.kind != "elementwise")
    with FlopCounterMode(display=False) as recomputed:
        greedy_by_recomputing(model, [5], n)
    assert recomputed.get_total_flops() > 10 * cached.get_total_flops()


def test_cache_bytes_equal_the_formula(model):
    """2 (keys and values) * layers * kv heads * d_head * bytes per number, for every token."""
    caches = [CountingCache() for _ in model.blocks]
    with torch.no_grad():
        model(torch.zeros(1, 3, dtype=torch.long), caches=caches)
    assert sum(c.bytes_per_token for c in caches) == 2 * 2 * 2 * 8 * 4


def test_a_seed_repeats_and_no_seed_follows_the_global_one(engine):
    first = engine.generate("the", max_tokens=20, seed=3)
    assert engine.generate("the", max_tokens=20, seed=3) == first
    assert engine.generate("the", max_tokens=20, seed=4) != first
    torch.manual_seed(1)
    one, two = engine.generate(["the", "the"], max_tokens=20)
    assert one.tokens != two.tokens
    torch.manual_seed(1)
    assert engine.generate(["the", "the"], max_tokens=20) == [one, two]


def test_streaming_is_generating_in_pieces(engine):
    params = SamplingParams(max_tokens=40, seed=5)
    pieces, stream = [], engine.stream("the", params)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            completion = end.value
            break
    assert completion == engine.generate("the", params)
    assert "".join(pieces) == completion.text and all(pieces) and len(pieces) > 5


def test_streaming_never_breaks_a_character(engine, tokenizer, monkeypatch):
    ids = [*"aé€😀".encode(), tokenizer.end_of_text]
    says(monkeypatch, engine, ids)
    assert list(engine.stream("x", GREEDY)) == ["a", "é", "€", "😀"]


def test_stop_text_across_tokens_is_not_shown(engine, tokenizer, monkeypatch):
    for stop in ("END", ["zzz", "END"]):
        says(monkeypatch, engine, b"some ENx END more")
        done = engine.generate("x", GREEDY, max_tokens=40, stop=stop)
        assert (done.text, done.finish_reason) == ("some ENx ", "stop")
        assert bytes(done.tokens) == b"some ENx END"


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|end|>"])
def test_end_tokens_end_the_text(engine, tokenizer, monkeypatch, token):
    says(monkeypatch, engine, [97, tokenizer.special_tokens[token], 98])
    done = engine.generate("x", GREEDY)
    assert (done.text, done.finish_reason, done.tokens[0], len(done.tokens)) == ("a", "end", 97, 2)


def test_rows_that_end_early_do_not_disturb_the_rest(engine, tokenizer, monkeypatch):
    settings = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 9, 0, 4)]
    done = engine.generate([[5], [6, 7], [8], [9]], settings)
    assert [len(c.tokens) for c in done] == [1, 9, 0, 4]
    assert done[1].tokens == greedy_by_recomputing(engine.model, [6, 7], 9)


def test_the_context_is_a_limit(engine):
    context = engine.context_length
    done = engine.generate([5] * (context - 3), GREEDY, max_tokens=2**62)
    assert (len(done.tokens), done.finish_reason, done.prompt_tokens) == (3, "length", context - 3)
    assert engine.generate([5] * context, GREEDY).tokens == []
    with pytest.raises(ValueError, match=f"{context + 1} tokens do not fit the model's context of {context}"):
        engine.generate([5] * (context + 1), GREEDY)


def test_learned_positions_are_a_limit_too(tokenizer):
    model = new_model(tokenizer.vocab_size, presets.gpt2, context_length=16)
    assert isinstance(model.config.positions, LearnedPositions)
    done = Engine(model, tokenizer).generate([[5] * 10, [6]], temperature=0, max_tokens=99)
    assert [len(c.tokens) for c in done] == [6, 15]


def test_an_empty_prompt_starts_from_end_of_text(engine, tokenizer):
    expected = engine.generate([tokenizer.end_of_text], GREEDY)
    assert engine.generate("", GREEDY) == expected
    assert engine.generate([[]], GREEDY) == [expected]
    assert engine.generate([], GREEDY) == []


def test_text_that_spells_a_control_token_stays_text(engine, tokenizer):
    assert engine.generate("<|end|>", GREEDY).prompt_tokens > 1


def test_chat_renders_the_conversation(engine, tokenizer):
    messages = [{"role": "user", "content": "hi <|end|>"}]
    user, assistant, end = (tokenizer.special_tokens[t] for t in ("<|user|>", "<|assistant|>", "<|end|>"))
    ids = [user, *tokenizer.encode("hi <|end|>"), end, assistant]
    assert engine.chat_prompt(messages) == ids
    assert engine.chat(messages, GREEDY) == engine.generate(ids, GREEDY)
    assert "".join(engine.stream_chat(messages, GREEDY)) == engine.chat(messages, GREEDY).text


def test_the_model_is_left_as_it_was(model, tokenizer):
    model.train()
    model.blocks[0].eval()
    modes = [m.training for m in model.modules()]
    stream = Engine(model, tokenizer, dtype=torch.bfloat16).stream("the", GREEDY)
    next(stream)
    assert [m.training for m in model.modules()] == modes and model.compute_dtype == torch.float32
    stream.close()
    model(torch.tensor([[1, 2]])).sum().backward()
    model.zero_grad()
    model.eval()


def test_another_compute_type(model, tokenizer):
    done: Any = Engine(model, tokenizer, dtype=torch.bfloat16).generate([5, 6], GREEDY, logprobs=1)
    exact: Any = Engine(model, tokenizer).generate([5, 6], GREEDY, logprobs=1)
    assert done.logprobs[0].logprob == pytest.approx(exact.logprobs[0].logprob, abs=0.2)


def test_ids_without_text_are_never_chosen(tokenizer):
    model = new_model(tokenizer.vocab_size + 40)
    done = Engine(model, tokenizer).generate([[1]] * 4, max_tokens=40, temperature=50.0)
    assert max(t for c in done for t in c.tokens) < tokenizer.vocab_size


def test_mistakes_are_named(model, tokenizer, engine):
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        engine.generate("x", temprature=1.0)
    with pytest.raises(ValueError, match="id 268 is not in the vocabulary"):
        engine.generate([268])
    with pytest.raises(ValueError, match="id -1"):
        engine.stream([-1])
    with pytest.raises(ValueError, match="^temperature="):
        engine.generate("x", temperature=math.nan)
    with pytest.raises(ValueError, match="2 for 1 prompts"):
        engine.generate(["x"], [GREEDY, GREEDY])
    with pytest.raises(ValueError, match="do not belong together"):
        Engine(new_model(100), tokenizer)


@pytest.mark.usefixtures("unchecked")
def test_a_model_that_looks_ahead_does_not_generate(model, tokenizer):
    block = replace(model.config.blocks[0], mixer=replace(model.config.blocks[0].mixer, causal=False))
    with pytest.raises(ValueError, match="engine: a layer of this model has causal=False .* does not generate"):
        Engine(Transformer(replace(model.config, blocks=(block,))), tokenizer)
    pair = EncoderDecoder(presets.vaswani_encoder_decoder(vocab_size=9, d_model=16, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="engine: an EncoderDecoder answers a source"):
        Engine(pair, tokenizer)


def test_broken_weights_are_reported(tokenizer):
    model = new_model(tokenizer.vocab_size)
    with torch.no_grad():
        model.embed.weight[:] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        Engine(model, tokenizer).generate("x")
