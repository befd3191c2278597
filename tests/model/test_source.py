"""Models from any file to any file, with their tokenizer and chat format, and the comparison at the end."""

import json
from dataclasses import replace

import pytest
import torch

from groundup.inference import Engine
from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, Transformer
from groundup.model.source import Source, compare, read_source, write_folder, write_gguf_model
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.chat import CHAT_TEMPLATE
from tests.model.models import path_of, shaken
from tests.model.test_llama2c import file_of
from tests.tokenizer.test_template import CHATML

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONFIG = ModelConfig(300, 32, 2, (BlockConfig(AttentionConfig(2, 1, 16), MLPConfig(64)),), context_length=64)


@pytest.fixture(scope="module")
def source():
    tokenizer = Tokenizer.train_from_iterator(["user\nHello system\nassistant\n the cat in the hat"] * 3, 300, SPECIAL)
    model = shaken(Transformer(replace(CONFIG, vocab_size=tokenizer.vocab_size)))
    ids = tuple(tokenizer.special_tokens[token] for token in ("<|im_end|>", "<|endoftext|>"))
    return Source(model, tokenizer, CHATML, ids)


def same(first, second):
    assert first.model.config == second.model.config
    assert first.tokenizer.parts() == second.tokenizer.parts()
    assert (first.template, first.end_ids) == (second.template, second.end_ids)


@pytest.mark.parametrize("max_shard_bytes", [None, 20_000])
def test_a_folder_and_a_file_and_a_folder_again(source, tmp_path, max_shard_bytes):
    write_folder(source, tmp_path / "one", max_shard_bytes=max_shard_bytes)
    same(source, read_source(tmp_path / "one"))
    write_gguf_model(read_source(tmp_path / "one"), tmp_path / "two.gguf", "f32")
    same(source, read_source(tmp_path / "two.gguf"))
    write_folder(read_source(tmp_path / "two.gguf"), tmp_path / "three", max_shard_bytes=max_shard_bytes)
    assert compare(source, read_source(tmp_path / "three")) == (0.0, pytest.approx(1, abs=99), True, 48)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "three" / file.name).read_bytes(), file.name


def test_an_engine_of_the_folder_chats_in_the_models_own_format(source, tmp_path):
    write_folder(source, tmp_path / "m")
    engine = Engine.load(tmp_path / "m", device="cpu")
    prompt = engine.chat_prompt([{"role": "user", "content": "Hello<|im_end|>"}])
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello"
    opening = source.tokenizer.encode(text, allowed_special="all")
    assert prompt[: len(opening)] == opening
    assert prompt.count(source.end_ids[0]) == 2  # the template's two, not the one that is spelled
    assert engine.can_chat and engine.end_ids == set(source.end_ids)


def test_end_ids_end_an_answer(source):
    """Greedy text goes on until the id that comes next is declared an end."""
    free = Engine(source.model, source.tokenizer).generate("the cat", max_tokens=8, temperature=0.0)
    third = free.tokens[2]
    done = Engine(source.model, source.tokenizer, end_ids=[third]).generate("the cat", max_tokens=8, temperature=0.0)
    assert done.finish_reason == "end"
    assert done.tokens == free.tokens[: free.tokens.index(third) + 1]


def test_a_broken_list_of_ends_is_named(source, tmp_path):
    write_folder(source, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": ["a"]}')
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id: \['a'\]; expected an id"):
        Engine.load(tmp_path / "m", device="cpu")


def test_transformers_loads_the_folder_with_its_chat_template(source, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_folder(source, tmp_path / "m", max_shard_bytes=20_000)
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    messages = [{"role": "user", "content": "Hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == Engine.load(tmp_path / "m", device="cpu").chat_prompt(messages)
    assert tokenizer.eos_token == "<|im_end|>"
    assert theirs.generation_config.eos_token_id == list(source.end_ids)
    with torch.no_grad():
        torch.testing.assert_close(source.model(source.probe()), theirs(source.probe()).logits, rtol=1e-4, atol=1e-4)


def test_llama2c_comes_without_a_tokenizer(tmp_path):
    (tmp_path / "m.bin").write_bytes(file_of())
    source = read_source(tmp_path / "m.bin")
    assert (source.tokenizer, source.template, source.end_ids) == (None, None, ())
    write_folder(source, tmp_path / "m", "bf16")
    difference = compare(source, read_source(tmp_path / "m"))
    assert 0 < difference.logits < 0.2 and difference.tokens == 16


def test_another_model_or_tokenizer_is_told_apart(source):
    other = Source(shaken(Transformer(source.model.config), seed=1), source.tokenizer)
    assert compare(source, other).logits > 0.1
    assert not compare(source, other).greedy_agrees
    stranger = Tokenizer.train_from_iterator(["brown fox, lazy dog"] * 3, 270)
    with pytest.raises(ValueError, match="gives other ids than the source's"):
        compare(source, Source(source.model, stranger))


def test_what_is_there_is_not_overwritten(source, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"mine")
    with pytest.raises(ValueError, match="m: is there already, and is not overwritten"):
        write_folder(source, tmp_path / "m")
    with pytest.raises(ValueError, match="m.gguf: is there already"):
        write_gguf_model(source, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == b"mine"


def test_a_failed_write_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groundup.tensorfile.write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        write_folder(source, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_model(source, tmp_path):
    (tmp_path / "x.txt").write_bytes(b"hello")
    with pytest.raises(ValueError, match="x.txt: expected a model folder, a GGUF file, or llama2.c"):
        read_source(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError):
        read_source(tmp_path / "nothing.gguf")
    with pytest.raises(ValueError, match="dtype 'q8_0': a folder holds one of f32, f16, bf16"):
        write_folder(source, tmp_path / "m", "q8_0")
    broken = replace(source, template="{% import 'os' as os %}")
    write_gguf_model(broken, tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="Import is not something a template may use"):
        read_source(tmp_path / "m.gguf")
    assert read_source(tmp_path / "m.gguf", with_tokenizer=False).tokenizer is None


def test_a_tokenizer_that_is_not_supported_can_be_left_out(source, tmp_path):
    write_gguf_model(source, tmp_path / "m.gguf", "f32")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data.replace(b"gpt2", b"spm!", 1))
    with pytest.raises(ValueError, match="tokenizer.ggml.model: 'spm!' is not supported.*--without-tokenizer"):
        read_source(tmp_path / "m.gguf")
    assert compare(Source(source.model), read_source(tmp_path / "m.gguf", with_tokenizer=False)).logits == 0


def test_code_that_a_folder_brings_is_never_run(source, tmp_path):
    write_folder(source, tmp_path / "m")
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name, key in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        data = json.loads((tmp_path / "m" / name).read_text())
        (tmp_path / "m" / name).write_text(json.dumps(data | {"auto_map": {key: "evil.Evil"}}))
    write_folder(read_source(tmp_path / "m"), tmp_path / "again")
    assert not (tmp_path / "ran").exists()
    assert not any("auto_map" in file.read_text() for file in (tmp_path / "again").glob("*.json"))


def test_our_own_chat_format_goes_to_gguf(tmp_path):
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer = Tokenizer.train_from_iterator(["the cat in the hat"] * 3, 270, special)
    source = Source(Transformer(replace(CONFIG, vocab_size=270)).eval(), tokenizer)
    write_folder(source, tmp_path / "m")
    ours = read_source(tmp_path / "m")
    assert ours.template is not None and "<|assistant|>" in ours.template
    assert ours.end_ids == (tokenizer.special_tokens["<|endoftext|>"], tokenizer.special_tokens["<|end|>"])
    write_gguf_model(ours, tmp_path / "m.gguf", "f32")
    assert read_source(tmp_path / "m.gguf").end_ids == ours.end_ids
    assert CHAT_TEMPLATE.partition("CONTROL")[0][:40] == ours.template[:40]


@pytest.mark.slow
def test_smollm2_goes_through_a_folder(tmp_path):
    source = read_source(path_of("smollm2.gguf"))
    write_folder(source, tmp_path / "m", max_shard_bytes=10**8)
    same(source, read_source(tmp_path / "m"))
    assert compare(source, read_source(tmp_path / "m"))[0] == 0


def test_the_tokens_that_a_template_means_come_along(source, tmp_path):
    """As Llama 3: it begins with bos_token, ends turns with a token that is one of three ends, and not the first."""
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    tokenizer = Tokenizer.train_from_iterator(["user: the cat in the hat"] * 3, 280, special)
    model = shaken(Transformer(replace(CONFIG, vocab_size=tokenizer.vocab_size)))
    ends = tuple(tokenizer.special_tokens[token] for token in special[1:])
    first = Source(model, tokenizer, template, ends, {"bos_token": special[0], "eos_token": special[3]})
    write_folder(first, tmp_path / "one")
    write_gguf_model(read_source(tmp_path / "one"), tmp_path / "two.gguf", "f32")
    write_folder(read_source(tmp_path / "two.gguf"), tmp_path / "three")
    for name in ("one", "three"):
        engine = Engine.load(tmp_path / name, device="cpu")
        expected = tokenizer.encode("<|begin_of_text|>user:hi<|eot_id|>", allowed_special="all")
        assert engine.chat_prompt([{"role": "user", "content": "hi"}]) == expected
        assert {tokenizer.special_tokens["<|eot_id|>"], tokenizer.special_tokens["<|end_of_text|>"]} <= engine.end_ids
