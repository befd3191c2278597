"""Models in GGUF: written and read, held to transformers' reading of them and to what llama.cpp says with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from groundup import presets
from groundup.gguf import KINDS, GGUFFile, write_gguf
from groundup.inference import Engine
from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, Rope, Transformer
from groundup.model.gguf import gguf_name, load_gguf, save_gguf
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.chat import CHAT_TEMPLATE
from groundup.tokenizer.gguf import to_metadata
from groundup.tokenizer.template import ChatTemplate
from tests.gguf.test_files import mutants
from tests.model.models import llama_cpp, path_of, shaken
from tests.thorough import times

TEXT = "the cat in the hat sat on the mat, and the bat saw the rat. It's 12 o'clock now, and the cat isn't in the hat. "
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]


def config(vocab_size=61, **options):
    mixer = AttentionConfig(4, 2, options.pop("d_head", 16), **options.pop("mixer", {}))
    blocks = (BlockConfig(mixer, MLPConfig(96, bias=options.pop("ffn_bias", False))),)
    return ModelConfig(vocab_size, 64, 2, blocks, context_length=128, norm_eps=1e-6, **options)


CONFIGS = {
    "llama": config(mixer={"rope": Rope(5_000.0)}),
    "llama_tied": config(tie_embeddings=True),
    "llama_head_size": config(d_head=6),
    "llama_biases": config(mixer={"bias": True, "out_bias": True}, ffn_bias=True),
    "qwen2": config(mixer={"bias": True}),
    "qwen3": config(mixer={"qk_norm": True}, d_head=32, tie_embeddings=True),
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_from_iterator([TEXT] * 3, 300, SPECIAL)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_in_f32_comes_back_exactly(tmp_path, name):
    model = shaken(Transformer(CONFIGS[name]))
    save_gguf(model, tmp_path / "m.gguf", dtype="f32")
    again = load_gguf(tmp_path / "m.gguf")
    assert again.config == model.config
    for (n, p), (m, q) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert n == m and torch.equal(p, q)


@pytest.mark.parametrize(("dtype", "bound"), {"f16": 2**-11, "bf16": 2**-8, "q8_0": None}.items())
def test_matrices_are_rounded_and_vectors_are_not(tmp_path, dtype, bound):
    model = shaken(Transformer(CONFIGS["llama"]))
    save_gguf(model, tmp_path / "m.gguf", dtype=dtype)
    for (_, p), (_, q) in zip(model.named_parameters(), load_gguf(tmp_path / "m.gguf").named_parameters(), strict=True):
        step = p.abs().max() / 127 if bound is None else bound * p.abs() + 2**-24
        assert torch.equal(p, q) if p.ndim == 1 else ((p - q).abs() <= step).all() and not torch.equal(p, q)


def test_rows_that_are_no_whole_blocks_stay_f16(tmp_path):
    save_gguf(Transformer(CONFIGS["llama_head_size"]), tmp_path / "m.gguf", dtype="q8_0")
    with GGUFFile(tmp_path / "m.gguf") as file:
        kinds = {name: info.kind.name for name, info in file.tensors.items()}
    assert kinds["blk.0.attn_output.weight"] == "F16"  # rows of 4 heads of 6
    assert kinds["blk.0.attn_q.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize("name", ["llama", "llama_tied", "qwen2", "qwen3"])
def test_transformers_reads_the_same_model(tmp_path, name, tokenizer):
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package, reason=f"transformers reads GGUF with {package}, which is not installed")
    transformers = pytest.importorskip("transformers")
    # transformers looks past the head size of Qwen3's files, and takes 128
    known = config(mixer={"qk_norm": True}, d_head=128) if name == "qwen3" else CONFIGS[name]
    model = shaken(Transformer(replace(known, vocab_size=tokenizer.vocab_size)))
    save_gguf(model, tmp_path / "m.gguf", to_metadata(tokenizer.parts(), tokenizer.vocab_size), "f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = torch.randint(tokenizer.vocab_size, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def trained(config, tokenizer, steps=40):
    """A model that knows one text by heart, so that its greedy words are far from any tie."""
    model, ids = Transformer(config), torch.tensor([tokenizer.encode(TEXT * 3)])
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama_biases", "qwen2", "qwen3"])
def test_llama_cpp_says_the_same(tmp_path, name, tokenizer):
    pytest.importorskip("xllamacpp", reason="xllamacpp, llama.cpp for Python, is not installed")
    model = trained(replace(CONFIGS[name], vocab_size=tokenizer.vocab_size), tokenizer)
    ends = [tokenizer.special_tokens[token] for token in ("<|endoftext|>", "<|end|>")]
    metadata = to_metadata(tokenizer.parts(), tokenizer.vocab_size, start=ends[0], end=ends[0], end_of_turn=ends[1],
                           template=CHAT_TEMPLATE)  # fmt: skip
    for dtype in ("f32", "f16", "q8_0"):
        save_gguf(model, tmp_path / f"{dtype}.gguf", metadata, dtype)
        theirs = llama_cpp(tmp_path / f"{dtype}.gguf")
        ours = Engine(load_gguf(tmp_path / f"{dtype}.gguf"), Tokenizer.load(tmp_path / f"{dtype}.gguf"))
        for prompt in ("the cat", "It's 12 o'clock"):
            assert theirs(prompt, 30) == ours.generate(prompt, max_tokens=30, temperature=0.0).text


# what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    save_gguf(shaken(Transformer(CONFIGS["llama"])), tmp_path / "m.gguf", dtype="f32")
    return tmp_path / "m.gguf"


def rewrite(path, change):
    """Let `change` edit the metadata and the tensors of a file."""
    with GGUFFile(path) as file:
        metadata = dict(file.metadata)
        tensors = {name: (info.kind, file.read(name)) for name, info in file.tensors.items()}
    change(metadata, tensors)
    write_gguf(path, {k: v for k, v in metadata.items() if v is not None}, tensors)


def test_a_file_that_is_rewritten_is_the_same(saved):
    before = saved.read_bytes()
    rewrite(saved, lambda metadata, tensors: None)
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "llama4", "general.architecture: 'llama4' is not supported.*did you mean 'llama'"),
        ("general.architecture", None, "general.architecture: None"),
        ("general.architecture", 3, "general.architecture: 3"),
        ("llama.embedding_length", None, "llama.embedding_length is missing"),
        ("llama.embedding_length", 63, "3 of another shape|of another shape"),
        ("llama.embedding_length", 2**32 - 1, "sizes are beyond what a tensor can have|of another shape"),
        ("llama.feed_forward_length", 2**32 - 1, "of another shape"),
        ("llama.vocab_size", 62, r"2 of another shape: output.weight \(61, 64\), expected \(62, 64\)"),
        ("llama.block_count", 3, "9 missing: blk.2.attn_k.weight"),
        ("llama.block_count", 1, "9 not in the config: blk.1.attn_k.weight"),
        ("llama.block_count", 2**32 - 1, "4294967295 layers, the weights 21 tensors"),
        ("llama.block_count", 0, "llama.block_count: 0; expected an integer of at least 1"),
        ("llama.block_count", "2", "llama.block_count: '2'; expected an integer"),
        ("llama.block_count", True, "llama.block_count: True; expected an integer"),
        ("llama.attention.head_count", np.array([4, 4], np.int32), "head_count: array.*expected an integer"),
        ("llama.attention.head_count_kv", 3, "num_kv_heads=3 does not divide num_heads=4"),
        ("llama.attention.value_length", 8, "value_length: 8 is not supported; expected 16"),
        ("llama.rope.dimension_count", 8, "dimension_count: 8 is not supported; expected 16"),
        ("llama.rope.scaling.type", "yarn", "rope.scaling.type: 'yarn' is not supported; expected 'none'"),
        ("llama.rope.freq_base", float("nan"), "rope.freq_base: nan; expected a positive number"),
        ("llama.rope.freq_base", 10_000, "rope.freq_base: 10000; expected a positive number"),
        ("llama.attention.layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon is missing"),
        ("llama.expert_count", 8, "expert_count: 8 is not supported; expected 0"),
        ("llama.attention.sliding_window", 4096, "sliding_window: 4096 is not supported"),
    ],
)
def test_metadata_that_does_not_fit(saved, key, value, message):
    rewrite(saved, lambda metadata, tensors: metadata.update({key: value}))
    with pytest.raises(ValueError, match=message) as caught:
        load_gguf(saved)
    assert str(saved) in str(caught.value)


def ones(*shape):
    return KINDS["F32"], np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("output_norm.weight"), "1 missing: output_norm.weight"),
        (lambda t: t.pop("token_embd.weight"), "vocab_size|1 missing: token_embd.weight"),
        (lambda t: t.update({"extra": ones(1)}), "1 not in the config: extra"),
        (lambda t: t.update({"rope_freqs.weight": ones(8)}), "rope_freqs.weight: rotary frequencies of their own"),
        (lambda t: t.update({"output_norm.weight": ones(65)}), r"output_norm.weight \(65,\), expected \(64,\)"),
        (lambda t: t.update({"output_norm.weight": ones(64, 1)}), r"output_norm.weight \(64, 1\), expected"),
        (lambda t: t["blk.1.ffn_up.weight"][1].fill(np.nan), "1 tensors hold NaN or infinity: blk.1.ffn_up.weight"),
        (lambda t: t["output.weight"][1][3].fill(np.inf), "output.weight"),
        (lambda t: t.clear(), "2 layers, the weights 0 tensors"),
    ],
)
def test_tensors_that_do_not_fit(saved, change, message):
    rewrite(saved, lambda metadata, tensors: change(tensors))
    with pytest.raises(ValueError, match=message):
        load_gguf(saved)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (presets.gpt2(vocab_size=61, num_layers=1, d_model=32, num_heads=4, context_length=32), "gpt2's architecture"),
        (config(mixer={"window": 4}), "mistral's architecture; windows"),
        (config(mixer={"causal": False}), "attention that looks ahead"),
        (replace(CONFIGS["llama"], blocks=(BlockConfig(AttentionConfig(4, 2, 16), MLPConfig(96, activation="gelu")),)),
         "activation 'gelu' instead of silu"),
        (replace(CONFIGS["llama"], logit_softcap=2.0), "logit_softcap"),
    ],
)  # fmt: skip
def test_models_that_llama_cpp_has_no_name_for(tmp_path, model, message):
    with pytest.raises(ValueError, match=message):
        save_gguf(Transformer(model), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_written(tmp_path):
    model = Transformer(CONFIGS["llama"])
    with pytest.raises(ValueError, match="dtype 'q4_0' is read only; expected one of f32, f16, q8_0, bf16"):
        save_gguf(model, tmp_path / "m.gguf", dtype="q4_0")
    with torch.no_grad():
        model.head_weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="head.weight: holds NaN"):
        save_gguf(model, tmp_path / "m.gguf")


# the tokenizer in the metadata --------------------------------------------------------------------------------------


def test_the_tokenizer_goes_along(tmp_path, tokenizer):
    model = Transformer(config(tokenizer.vocab_size + 3))
    save_gguf(model, tmp_path / "m.gguf", to_metadata(tokenizer.parts(), model.config.vocab_size))
    assert Tokenizer.load(tmp_path / "m.gguf").parts() == tokenizer.parts()  # three rows more, without a token


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": "cl100k"}, "pattern 'cl100k': llama.cpp has no such pre-tokenizer; expected one of gpt2"),
        ({"ignore_merges": True, "vocab": {999: b"zz"}}, "token b'zz': merges do not reach it"),
    ],
)
def test_tokenizers_that_llama_cpp_cannot_follow(tokenizer, change, message):
    parts = tokenizer.parts()
    change = change | ({"vocab": parts.vocab | change["vocab"]} if "vocab" in change else {})
    with pytest.raises(ValueError, match=message):
        to_metadata(replace(parts, **change), 1000)


def test_more_tokens_than_rows(tokenizer):
    with pytest.raises(ValueError, match="the tokenizer has the id [0-9]+, the model 99 rows"):
        to_metadata(tokenizer.parts(), 99)


def test_a_normalizer_is_left_out_aloud(tokenizer, caplog):
    to_metadata(replace(tokenizer.parts(), normalizer="NFC"), tokenizer.vocab_size)
    assert "applies no normalizer" in caplog.text


# a published model ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_has_the_logits_that_transformers_gives_it():
    path = path_of("smollm2.gguf")
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package, reason=f"transformers reads GGUF with {package}, which is not installed")
    transformers = pytest.importorskip("transformers")
    ids = torch.tensor([Tokenizer.load(path).encode("The capital of France is Paris, and that of Italy is")])
    ours = load_gguf(path).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        assert (ours(ids) - theirs.eval()(ids).logits).abs().max() < 1e-3
        ours.compute_dtype = torch.float64
        assert (ours.double()(ids) - theirs.double()(ids).logits).abs().max() < 1e-4


@pytest.mark.slow
def test_smollm2_answers():
    """Pinned: greedy words of the dequantised weights in float32."""
    path = path_of("smollm2.gguf")
    with GGUFFile(path) as file:
        template, end = (
            ChatTemplate(file.metadata["tokenizer.chat_template"]),
            file.metadata["tokenizer.ggml.eos_token_id"],
        )
    engine = Engine(load_gguf(path), Tokenizer.load(path), chat_template=template, end_ids=[end])
    answer = engine.chat(
        [{"role": "user", "content": "What is the capital of France?"}], max_tokens=20, temperature=0.0
    )
    assert (answer.text, answer.finish_reason) == ("The capital of France is Paris.", "end")


@pytest.mark.slow
def test_smollm2_dequantised_says_in_llama_cpp_what_it_says_here(tmp_path):
    path = path_of("smollm2.gguf")
    pytest.importorskip("xllamacpp", reason="xllamacpp, llama.cpp for Python, is not installed")
    model, tokenizer = load_gguf(path), Tokenizer.load(path)
    save_gguf(model, tmp_path / "m.gguf", to_metadata(tokenizer.parts(), model.config.vocab_size, end=2), "f32")
    theirs, ours = llama_cpp(tmp_path / "m.gguf"), Engine(model, tokenizer)
    for prompt in ("The capital of France is", "Once upon a time, 12345 little girls weren't", "def f(x):\n    return"):
        assert theirs(prompt, 24) == ours.generate(prompt, max_tokens=24, temperature=0.0).text


def test_names_of_tensors():
    assert gguf_name("embed.weight") == "token_embd.weight"
    assert gguf_name("blocks.11.ffn.gate.bias") == "blk.11.ffn_gate.bias"
    assert gguf_name("final_norm.weight") == "output_norm.weight"


@pytest.mark.parametrize("count", [150, pytest.param(times(1_000), marks=pytest.mark.slow)])
def test_mutants_of_a_model_are_sound_or_refused(saved, count, unchecked):
    accepted = 0
    for mutant in mutants(saved.read_bytes(), count, seed=count):
        saved.write_bytes(mutant)
        try:
            model = load_gguf(saved)
        except ValueError:
            continue
        accepted += 1
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert 0 < accepted < count
