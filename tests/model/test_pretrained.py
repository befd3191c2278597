"""Hugging Face's layout, held to `transformers` itself in both directions."""

import json
import struct
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from groundup import presets, tensorfile
from groundup.model import (
    AttentionConfig,
    Balance,
    BlockConfig,
    LatentAttentionConfig,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    Rope,
    SinusoidalPositions,
    TopKRouter,
    Transformer,
)
from groundup.model.pretrained import load_pretrained, save_pretrained
from groundup.tokenizer import Tokenizer

VOCAB = 61


def shaken(model):
    """Every parameter away from its initial value: gains from one, biases from zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator)
    return model.eval()


def tokens(seq=12):
    return torch.randint(0, VOCAB, (2, seq), generator=torch.Generator().manual_seed(1))


def same_logits(ours, theirs):
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=1e-4, atol=1e-4)


def llama_like(*, mixer=None, **options):
    mixer = mixer or AttentionConfig(4, 2, 8, rope=Rope(5_000.0))
    options = {"ffn": MLPConfig(40), "context_length": 32} | options
    ffn = options.pop("ffn")
    blocks = options.pop("blocks", (BlockConfig(mixer, ffn),))
    return ModelConfig(VOCAB, 32, options.pop("num_layers", 2), blocks, **options)


def qwen(window):
    return BlockConfig(AttentionConfig(4, 2, 8, qk_norm=True, window=window), MLPConfig(40))


OURS = {
    "llama": llama_like(),
    "llama_tied": llama_like(tie_embeddings=True),
    "llama_mha": llama_like(mixer=AttentionConfig(4, 4, 8)),
    "llama_mqa": llama_like(mixer=AttentionConfig(4, 1, 8)),
    "llama_head_size": llama_like(mixer=AttentionConfig(4, 2, 6), norm_eps=1e-3),
    "llama_biases": llama_like(mixer=AttentionConfig(4, 2, 8, bias=True, out_bias=True), ffn=MLPConfig(40, bias=True)),
    "llama_gelu": llama_like(ffn=MLPConfig(40, activation="gelu")),
    "llama_relu2": llama_like(ffn=MLPConfig(40, activation="relu2")),
    "llama_gelu_tanh": llama_like(ffn=MLPConfig(40, activation="gelu_tanh")),
    "mistral": llama_like(mixer=AttentionConfig(4, 2, 8, window=4)),
    "qwen2": llama_like(mixer=AttentionConfig(4, 2, 8, bias=True)),
    "qwen3": llama_like(mixer=AttentionConfig(4, 2, 6, qk_norm=True)),
    "qwen3_tied": llama_like(mixer=AttentionConfig(4, 2, 8, qk_norm=True), tie_embeddings=True),
    "qwen3_windows": llama_like(blocks=(qwen(3), qwen(3), qwen(None)), num_layers=6),
    "gpt2": presets.gpt2(vocab_size=VOCAB, num_layers=2, d_model=32, num_heads=4, context_length=32),
    "gpt2_untied": replace(
        presets.gpt2(vocab_size=VOCAB, num_layers=2, d_model=32, num_heads=4, context_length=32),
        tie_embeddings=False,
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_ours_written_loads_in_transformers_and_in_ours(tmp_path, name):
    model = shaken(Transformer(OURS[name]))
    save_pretrained(model, None, tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    theirs, problems = loaded
    assert not any(problems.values()), problems
    same_logits(model, theirs.eval())
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    for (n, p), (m, q) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert n == m and torch.equal(p, q) and q.requires_grad


SIZES: Any = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
    bos_token_id=None, eos_token_id=None,
)  # fmt: skip
GPT2: Any = dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0)

THETA: Any = dict(rope_theta=777.0)  # the name of transformers 4, which 5 still reads
WINDOWS: Any = dict(use_sliding_window=True, sliding_window=3, max_window_layers=1)

THEIRS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **THETA, num_key_value_heads=2)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama_biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=6)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=5)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=12)),
    "qwen3_tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=4, tie_word_embeddings=True)),
    "qwen3_windows": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, **WINDOWS)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "gpt2_untied": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, tie_word_embeddings=False)),
    "gpt2_relu": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, n_inner=20, activation_function="relu")),
}


@pytest.mark.parametrize("name", THEIRS)
def test_theirs_loads_in_ours_and_back(tmp_path, name):
    torch.manual_seed(0)
    theirs = shaken(THEIRS[name]())
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    same_logits(ours, theirs)
    save_pretrained(ours, None, tmp_path / "back")
    first, second = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_sharded_checkpoint_and_half_precision(tmp_path):
    theirs = shaken(THEIRS["llama"]()).bfloat16()
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = load_pretrained(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    same_logits(ours, LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval())


def test_half_precision_written(tmp_path):
    model = shaken(Transformer(OURS["llama"]))
    save_pretrained(model, None, tmp_path, dtype=torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert torch.equal(load_pretrained(tmp_path).head_weight, model.head_weight.bfloat16().float())


def test_a_gpt2_file_of_the_inner_model_with_its_mask_tables(tmp_path):
    """The published gpt2 has no "transformer." before its names, and causal masks among its weights."""
    theirs = shaken(THEIRS["gpt2"]())
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {k.removeprefix("transformer."): v for k, v in tensors.items()}
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32) for i in range(2)}
    save_file(bare, tmp_path / "model.safetensors")
    same_logits(load_pretrained(tmp_path), theirs)


@pytest.fixture(scope="module")
def tokenizer():
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
    return Tokenizer.train_from_iterator(["the cat in the hat, the cat and the bat"], 270, special_tokens=special)


def test_the_tokenizer_goes_along(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer")
    model = Transformer(replace(OURS["llama"], vocab_size=tokenizer.vocab_size))
    save_pretrained(model, tmp_path / "tokenizer", tmp_path / "model", {"build": {"budget": 60}})
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "the cat's hat"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    end, turn = tokenizer.special_tokens["<|endoftext|>"], tokenizer.special_tokens["<|end|>"]
    hugging = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert hugging.generation_config.eos_token_id == [end, turn]
    assert hugging.config.bos_token_id == end
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["groundup"]["build"] == {"budget": 60}
    assert config["groundup"]["model"]["kind"] == "ModelConfig"
    assert config["torch_dtype"] == "float32"


def test_saving_into_a_folder_in_use_keeps_its_other_files(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("kept")
    before = (tmp_path / "tokenizer.json").read_bytes()
    model = Transformer(replace(OURS["llama"], vocab_size=tokenizer.vocab_size))
    save_pretrained(model, tmp_path, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "kept"
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_a_tokenizer_that_is_larger_than_the_model(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="270 tokens and the model only 61"):
        save_pretrained(Transformer(OURS["llama"]), tmp_path / "tokenizer", tmp_path / "model")
    assert not (tmp_path / "model").exists()


GPT, BLOCK = OURS["gpt2"], OURS["llama"].blocks[0]
UNEXPRESSED = {
    "post": (llama_like(blocks=(replace(BLOCK, placement="post"),)), "placement"),
    "layer norm": (llama_like(blocks=(replace(BLOCK, norm="layer"),)), "layer norm"),
    "no positions": (llama_like(mixer=AttentionConfig(4, 2, 8, rope=None)), "without a rotary"),
    "sinusoids": (llama_like(positions=SinusoidalPositions(32)), "sinusoidal"),
    "softcap": (llama_like(mixer=AttentionConfig(4, 2, 8, softcap=2.0)), "attention softcap"),
    "logit softcap": (llama_like(logit_softcap=2.0), "logit_softcap"),
    "scaled": (llama_like(scale_embeddings=True), "scale_embeddings"),
    "no final norm": (llama_like(final_norm=False), "no final norm"),
    "no gate": (llama_like(ffn=MLPConfig(40, gated=False)), "without a gate"),
    "out bias only": (llama_like(mixer=AttentionConfig(4, 2, 8, out_bias=True)), "output alone"),
    "some windows": (
        llama_like(blocks=(BLOCK, replace(BLOCK, mixer=replace(BLOCK.mixer, window=3)))), "some layers only"
    ),
    "two windows": (llama_like(blocks=(qwen(3), qwen(4))), "different sizes"),
    "unlike layers": (llama_like(blocks=(BLOCK, replace(BLOCK, ffn=MLPConfig(8)))), "layers that differ"),
    "odd width": (llama_like(mixer=AttentionConfig(3, 3, 8)), "does not divide"),
    "gpt2 rms": (replace(GPT, blocks=(replace(GPT.blocks[0], norm="rms"),)), "RMSNorm with learned"),
    "gpt2 unbiased": (replace(GPT, norm_bias=False), "without a bias"),
    "gpt2 rope": (llama_like(positions=LearnedPositions(32)), "together"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNEXPRESSED)
def test_what_no_class_has_is_refused_with_the_reason(tmp_path, name):
    config, reason = UNEXPRESSED[name]
    with pytest.raises(ValueError, match=f"no Hugging Face class.*{reason}"):
        save_pretrained(Transformer(config), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config |= changes
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))


@pytest.fixture
def saved(tmp_path):
    save_pretrained(shaken(Transformer(OURS["llama"])), None, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"vocab_size": 62},
            r"2 of another shape: lm_head.weight \(61, 32\), expected \(62, 32\), model.embed",
        ),
        ({"intermediate_size": 10**12}, "6 of another shape"),
        ({"num_hidden_layers": 3}, "9 missing: model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "9 not in the config: model.layers.1"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers, the weights 21 tensors"),
        ({"num_attention_heads": 3}, "num_kv_heads=2 does not divide"),
        ({"attention_bias": True}, "8 missing: .*k_proj.bias"),
        ({"tie_word_embeddings": True}, "ties the embeddings, yet"),
        ({"hidden_size": "gone"}, "hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size='32'; expected an integer"),
        ({"hidden_size": -1}, "hidden_size=-1"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"hidden_act": "swiglu"}, "hidden_act='swiglu' is not supported; did you mean"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_type='longrope' is not supported"),
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": ["LLamaForCausalLM"]}, "did you mean 'LlamaForCausalLM'"),
    ],
)
def test_a_config_that_does_not_fit_its_weights(saved, changes, message):
    edit_config(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load_pretrained(saved)


def rewrite(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("model.norm.weight"), "1 missing: model.norm.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "1 not in the config: extra"),
        (
            lambda t: t["model.norm.weight"].fill_(torch.nan),
            "1 tensors hold NaN or infinity: model.norm.weight",
        ),
        (lambda t: t["lm_head.weight"][3].fill_(torch.inf), "lm_head.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int64)}), "not floating point"),
        (lambda t: t.clear(), "the weights 0 tensors"),
    ],
)
def test_weights_that_do_not_fit_the_config(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        load_pretrained(saved)


def test_hostile_directories(saved, tmp_path):
    weights = saved / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(struct.pack("<Q", 2**62) + good[8:])
    with pytest.raises(ValueError, match="header of"):
        load_pretrained(saved)
    weights.rename(saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        load_pretrained(saved)
    index = saved / "model.safetensors.index.json"
    for name in ("../secret.safetensors", "/etc/passwd", "model.bin", 3):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ValueError, match="index"):
            load_pretrained(saved)
    (saved / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        load_pretrained(saved)
    with pytest.raises(ValueError, match="no such directory"):
        load_pretrained(tmp_path / "gpt2")


def test_code_that_a_directory_brings_is_never_run(saved):
    (saved / "modeling_evil.py").write_text(f"open({str(saved / 'ran')!r}, 'w')\nclass Evil: pass\n")
    edit_config(saved, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    load_pretrained(saved)
    assert not (saved / "ran").exists()


def test_config_json_is_written_last(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("groundup.tensorfile.write_tensors", full)
    with pytest.raises(OSError, match="no space"):
        save_pretrained(Transformer(OURS["llama"]), None, tmp_path)
    assert list(tmp_path.iterdir()) == []


class TestShards:
    def names(self, path):
        return sorted(file.name for file in path.glob("*.safetensors*"))

    @pytest.mark.parametrize("limit", [1, 5_000, 20_000])
    def test_transformers_and_we_read_them(self, tmp_path, limit):
        model = shaken(Transformer(OURS["llama"]))
        save_pretrained(model, None, tmp_path, max_shard_bytes=limit)
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        sizes = [sum(t.nbytes for t in load_file(tmp_path / name).values()) for name in self.names(tmp_path)[:-1]]
        assert len(sizes) == (21 if limit == 1 else len(sizes)) > 2
        assert index["metadata"]["total_size"] == sum(sizes) == 4 * sum(p.numel() for p in model.parameters())
        assert all(size <= limit or limit < 8_000 for size in sizes)
        assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
        loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        theirs, problems = loaded
        assert not any(problems.values()), problems
        same_logits(model, theirs.eval())
        assert torch.equal(load_pretrained(tmp_path).head_weight, model.head_weight)

    def test_another_number_of_files_leaves_none_of_the_old(self, tmp_path):
        first, second = (shaken(Transformer(OURS["llama"])) for _ in range(2))
        with torch.no_grad():
            second.head_weight.add_(1)
        for limit, count in ((None, 1), (20_000, 4), (5_000, 15), (None, 1)):
            for model in (first, second):
                save_pretrained(model, None, tmp_path, max_shard_bytes=limit)
                assert torch.equal(load_pretrained(tmp_path).head_weight, model.head_weight)
                assert len([name for name in self.names(tmp_path) if name.endswith("s")]) == count

    @pytest.mark.parametrize("before", [None, 20_000])
    def test_a_failure_on_the_way_mixes_no_weights(self, tmp_path, monkeypatch, before):
        old = shaken(Transformer(OURS["llama"]))
        save_pretrained(old, None, tmp_path, max_shard_bytes=before)
        written = []

        def full(path, tensors, metadata=None, original=tensorfile.write_tensors):
            if len(written) == 2:
                raise OSError("no space left")
            written.append(path.name)
            original(path, tensors, metadata)

        monkeypatch.setattr("groundup.tensorfile.write_tensors", full)
        with pytest.raises(OSError, match="no space"):
            save_pretrained(shaken(Transformer(OURS["llama"])), None, tmp_path, max_shard_bytes=20_000)
        if before is None:  # other names: the old model is still there
            assert torch.equal(load_pretrained(tmp_path).head_weight, old.head_weight)
        else:  # half of its files are replaced: nothing is there rather than a mixture
            with pytest.raises(ValueError, match="no model.safetensors"):
                load_pretrained(tmp_path)

    def test_a_tensor_in_two_files(self, tmp_path):
        save_pretrained(shaken(Transformer(OURS["llama"])), None, tmp_path, max_shard_bytes=20_000)
        first, second, *_ = self.names(tmp_path)
        both = load_file(tmp_path / first) | load_file(tmp_path / second)
        save_file(both, tmp_path / second)
        with pytest.raises(ValueError, match=f"{second} has tensors that another file has too: "):
            load_pretrained(tmp_path)

    def test_a_limit_that_is_none(self, tmp_path):
        with pytest.raises(ValueError, match="max_bytes=0; expected at least 1"):
            save_pretrained(Transformer(OURS["llama"]), None, tmp_path, max_shard_bytes=0)


def test_sizes_beyond_any_tensor(saved):
    edit_config(saved, intermediate_size=2**40, hidden_size=2**40, num_attention_heads=1, num_key_value_heads=1)
    with pytest.raises(ValueError, match="hidden_size=1099511627776; expected an integer of at most 1048576"):
        load_pretrained(saved)


def test_what_balances_experts_comes_back(tmp_path):
    router = TopKRouter("sigmoid", True, 2.5, bias_rate=0.001)
    for ffn in (MoEConfig(4, 2, 12, balance=Balance(load=0.01, z=0.001)), MoEConfig(4, 2, 12, 1, router)):
        block = BlockConfig(AttentionConfig(4, 2, 8), ffn)
        if ffn.router is router:
            block = replace(block, mixer=LatentAttentionConfig(4, 16, 8, 4, 8))
        config = ModelConfig(61, 32, 2, (block,), norm_eps=1e-6)
        save_pretrained(Transformer(config), None, tmp_path / ffn.router.score)
        assert load_pretrained(tmp_path / ffn.router.score).config == config


def test_half_precision_that_cannot_hold_a_weight_is_refused_before_anything_is_written(tmp_path):
    model = Transformer(presets.llama(vocab_size=61, d_model=32, num_layers=1, num_heads=2))
    with torch.no_grad():
        model.final_norm.weight[0] = 1e5
    with pytest.raises(ValueError, match="beyond what float16 holds: model.norm.weight; bf16 reaches further"):
        save_pretrained(model, None, tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half").exists()
