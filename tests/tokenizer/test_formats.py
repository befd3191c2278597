import doctest
import importlib
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.tokenizer import Tokenizer
from groundup.tokenizer.formats import MAX_FILE_BYTES, from_json, to_json
from groundup.tokenizer.spelling import byte_alphabet, spell, unspell
from tests.thorough import times
from tests.tokenizer.awkward import texts

tokenizers = pytest.importorskip("tokenizers")
PATTERNS = ("gpt2", "cl100k", "o200k", "none")


@pytest.mark.parametrize(
    "module", ["formats", "gguf", "gpt2_files", "hugging_face", "parts", "spelling", "tiktoken_ranks"]
)
def test_examples_in_docstrings(module):
    assert doctest.testmod(importlib.import_module(f"groundup.tokenizer.{module}")).failed == 0


@pytest.fixture(scope="module")
def hugging_face(trained):
    """pattern -> (parses special tokens, takes them as text): the same file read by `tokenizers`."""
    readers = {}
    for name, tokenizer in trained.items():
        both = [tokenizers.Tokenizer.from_str(to_json(tokenizer.parts())) for _ in range(2)]
        both[1].encode_special_tokens = True
        readers[name] = both
    return readers


@given(st.sampled_from(PATTERNS), texts)
def test_hugging_face_reads_our_file_and_encodes_alike(trained, hugging_face, pattern, text):
    parsing, plain = hugging_face[pattern]
    tokenizer = trained[pattern]
    assert parsing.encode(text).ids == tokenizer.encode(text, allowed_special="all")
    assert plain.encode(text).ids == tokenizer.encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_hugging_face_agrees_on_real_text(trained, hugging_face, real_text, pattern):
    tokenizer = trained[pattern]
    for text in (real_text[:5000],) if pattern == "none" else (real_text, real_text[::-1]):
        ids = tokenizer.encode(text)
        assert hugging_face[pattern][1].encode(text).ids == ids
        assert hugging_face[pattern][0].decode(ids) == tokenizer.decode(ids) == text


@pytest.mark.parametrize("pattern", PATTERNS)
def test_saving_and_loading_changes_nothing(trained, tmp_path, pattern):
    tokenizer = trained[pattern]
    for path in (tmp_path / "folder", tmp_path / "file.json"):
        tokenizer.save(path)
        again = Tokenizer.load(path)
        assert (again.vocab, again.merges, again.special_tokens, again.pattern) == (
            tokenizer.vocab,
            tokenizer.merges,
            tokenizer.special_tokens,
            tokenizer.pattern,
        )
        assert again.fingerprint == tokenizer.fingerprint
    assert len({t.fingerprint for t in trained.values()}) == len(trained)


def test_a_custom_pattern_and_special_tokens_with_any_id(tmp_path):
    trained = Tokenizer.train_from_iterator(["ab12 ab34"], 260, [], pattern=r"[a-z]+|\d{1,2}|\s")
    vocab = {token_id + 2: token for token_id, token in trained.vocab.items()} | {0: b"<s>"}
    tokenizer = Tokenizer(vocab, trained.merges, {"<s>": 0, "<é >": 1}, trained.pattern)
    tokenizer.save(tmp_path / "t.json")
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    text = "ab12<s>AB 345<é >x"
    ids = tokenizer.encode(text, allowed_special="all")
    assert Tokenizer.load(tmp_path / "t.json").encode(text, "all") == ids == other.encode(text).ids
    assert tokenizer.decode(ids) == text


def test_auto_tokenizer_loads_the_directory(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = trained["cl100k"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 500}))
    tokenizer.save(tmp_path)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = " It's 12345 o'clock <|end|> , not  later ! \n\n你好"
    assert auto(text)["input_ids"] == tokenizer.encode(text, allowed_special="all")
    assert auto.decode(tokenizer.encode(text)) == text
    assert auto.eos_token_id == tokenizer.end_of_text
    assert len(auto) == tokenizer.vocab_size


@pytest.fixture(scope="module")
def written_by_hugging_face():
    """A byte-level BPE trained and written by `tokenizers` itself, as GPT-2's file is laid out."""
    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = tokenizers.decoders.ByteLevel()
    other.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    other.train_from_iterator(["It's the cat's hat, 1234 你好 🌍 !! the the then"] * 3, trainer)
    return other


@given(texts)
def test_we_read_what_hugging_face_writes(written_by_hugging_face, text):
    other = written_by_hugging_face
    tokenizer = _loaded(other.to_str())
    ids = tokenizer.encode(text, allowed_special="all")
    assert ids == other.encode(text).ids
    assert tokenizer.decode(ids) == text


_loaded_once = {}


def _loaded(text):
    if text not in _loaded_once:
        parts = from_json(text)
        _loaded_once[text] = Tokenizer(parts.vocab, parts.merges, parts.special_tokens, parts.pattern)
    return _loaded_once[text]


def test_merges_as_strings_and_special_tokens_inside_the_vocabulary(written_by_hugging_face):
    contents = json.loads(written_by_hugging_face.to_str())
    contents["model"]["merges"] = [" ".join(merge) for merge in contents["model"]["merges"]]
    assert "<|endoftext|>" in contents["model"]["vocab"]
    assert from_json(json.dumps(contents)) == from_json(written_by_hugging_face.to_str())


def test_an_added_token_that_is_not_flagged_special_cannot_be_forged_either(trained):
    contents = json.loads(to_json(trained["gpt2"].parts()))
    contents["added_tokens"].append({"id": 500, "content": "<tool>", "special": False, "normalized": True})
    tokenizer = _loaded(json.dumps(contents))
    assert 500 not in tokenizer.encode("<tool>")
    assert tokenizer.encode("<tool>", allowed_special=["<tool>"]) == [500]


def test_the_byte_alphabet_is_that_of_hugging_face():
    alphabet = byte_alphabet()
    assert sorted(alphabet) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert len(set(alphabet)) == 256


def changed(path, value):
    def change(contents):
        *parents, last = path
        for key in parents:
            contents = contents[key]
        contents[last] = value

    return change


SPLIT = ["pre_tokenizer", "pretokenizers", 0]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(["normalizer"], {"type": "NFKC"}), "normalizer: 'NFKC'"),
        (changed(["normalizer"], {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}), "'Lowercase'"),
        (changed(["normalizer"], {"type": "Sequence"}), "normalizer.normalizers: expected list"),
        (changed(["truncation"], {"max_length": 5}), "truncation"),
        (changed(["padding"], {"strategy": "x"}), "padding"),
        (changed(["model"], {"type": "Unigram", "vocab": []}), "model.type: 'Unigram' is not supported"),
        (changed(["model", "type"], "WordPiece"), "model.type: 'WordPiece'"),
        (changed(["model", "byte_fallback"], True), "model.byte_fallback"),
        (changed(["model", "dropout"], 0.1), "model.dropout"),
        (changed(["model", "end_of_word_suffix"], "</w>"), "model.end_of_word_suffix"),
        (changed(["model", "vocab"], [1]), "model.vocab: expected dict, found"),
        (changed(["model", "vocab", "zz"], "7"), r"model.vocab\['zz'\]: expected int"),
        (changed(["model", "vocab", "zz"], True), r"model.vocab\['zz'\]: expected int"),
        (changed(["model", "vocab", "zz"], 65), "the id 65 is that of"),
        (changed(["model", "vocab", "zz"], -5), "id -5 is outside"),
        (changed(["model", "vocab", "zz"], 10**9), "id 1000000000 is outside"),
        (changed(["model", "vocab", "你"], 900), "'你', which stands for no byte"),
        (changed(["model", "vocab", ""], 900), "the token is empty"),
        (changed(["model", "vocab", "<|end|>"], 900), r"id 900, but 499 as an added token"),
        (changed(["model", "merges", 0], ["a"]), r"model.merges\[0\]: \['a'\] is not a pair"),
        (changed(["model", "merges", 0], "a b c"), r"model.merges\[0\]"),
        (changed(["model", "merges", 0], ["a", 1]), r"model.merges\[0\]"),
        (changed(["model", "merges", 0], ["a", "你"]), r"model.merges\[0\]"),
        (changed(["model", "merges", 0], 7), r"model.merges\[0\]: 7 is not a pair"),
        (changed(["model", "merges", 0], {"a": 1, "b": 2}), r"model.merges\[0\]: {'a': 1, 'b': 2} is not a pair"),
        (changed(["model", "merges", 1], ["~", "}"]), "merge 1 .* is not in the vocabulary"),
        (changed(["model", "merges"], None), "model.merges: expected list"),
        (changed(["added_tokens", 0, "lstrip"], True), r"added_tokens\[0\].lstrip"),
        (changed(["added_tokens", 0, "content"], 3), r"added_tokens\[0\].content"),
        (changed(["added_tokens", 0, "content"], "<|end|>"), r"added_tokens\[3\]: .* is there twice"),
        (changed(["added_tokens", 0, "content"], ""), "added token '': the id 496 is that of"),
        (changed(["added_tokens", 0, "id"], 1.5), r"added_tokens\[0\].id"),
        (changed(["added_tokens"], {"a": 1}), "added_tokens: expected list"),
        (changed(["pre_tokenizer"], None), "pre_tokenizer: expected dict"),
        (changed(["pre_tokenizer"], {"type": "Whitespace"}), "pre_tokenizer"),
        (changed(["pre_tokenizer", "pretokenizers", 1, "add_prefix_space"], True), "add_prefix_space"),
        (changed(["pre_tokenizer", "pretokenizers", 1, "use_regex"], True), "use_regex"),
        (changed([*SPLIT, "behavior"], "MergedWithNext"), "Split"),
        (changed([*SPLIT, "pattern"], {"String": " "}), "pre_tokenizer.pattern.Regex: expected str"),
        (changed([*SPLIT, "pattern"], {"Regex": "("}), "not a regular expression"),
        (changed([*SPLIT, "pattern"], {"Regex": "gpt2"}), "a word"),
        (changed([*SPLIT, "pattern"], {"Regex": "a{1,2}+"}), "does not mean the same"),
        (changed(["added_tokens", 0, "id"], 65), "id 496, but 65 as an added token"),
        (changed(["added_tokens"], [{"id": 65, "content": "<x>"}]), "'<x>': the id 65 is that of b'A' too"),
        (changed(["added_tokens"], [{"id": 900, "content": ""}]), "empty"),
        (
            changed(["model"], {"type": "BPE", "unk_token": "a", "vocab": {"a": 0}, "merges": []}),
            "model.unk_token: 'a'",
        ),
        (changed(["pre_tokenizer", "pretokenizers"], [{"type": "Digits"}, BYTE_LEVEL]), "Digits needs"),
        (changed(["post_processor"], {"type": "BertProcessing"}), "post_processor: 'BertProcessing'"),
        (changed(["post_processor"], {"type": "Sequence", "processors": [7]}), "post_processor: expected dict"),
    ],
)
def test_files_that_are_refused_say_what_and_where(trained, tmp_path, change, message):
    contents = json.loads(to_json(trained["gpt2"].parts()))
    change(contents)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("normalizer", [{"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]}])
def test_nfc_is_read_and_written(trained, normalizer):
    contents = json.loads(to_json(trained["gpt2"].parts()))
    contents["normalizer"] = normalizer
    parts = from_json(json.dumps(contents))
    assert parts.normalizer == "NFC"
    assert json.loads(to_json(parts))["normalizer"] == {"type": "NFC"}
    assert from_json(to_json(trained["gpt2"].parts())).normalizer is None


def test_what_a_post_processor_adds_is_forgotten(trained):
    contents = json.loads(to_json(trained["gpt2"].parts()))
    template = tokenizers.processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 499)])
    sequence = tokenizers.processors.Sequence([tokenizers.processors.ByteLevel(), template])
    other = tokenizers.Tokenizer.from_str(json.dumps(contents))
    other.post_processor = sequence
    assert other.encode("the").ids == [499, *trained["gpt2"].encode("the")]
    assert from_json(other.to_str()) == trained["gpt2"].parts()


def test_special_tokens_outside_the_vocabulary_are_part_of_it(trained):
    contents = json.loads(to_json(trained["gpt2"].parts()))
    for token in trained["gpt2"].special_tokens:
        del contents["model"]["vocab"][token]
    assert from_json(json.dumps(contents)) == trained["gpt2"].parts()


@given(st.binary(max_size=8))
def test_spelling_is_undone(token):
    assert unspell(spell(token), "") == token


def test_only_the_alphabet_can_be_unspelled():
    strangers = [chr(code) for code in range(0x400) if chr(code) not in byte_alphabet()]
    assert len(strangers) == 0x400 - 256
    for stranger in (*strangers, "\ud800", "你", "🌍"):
        with pytest.raises(ValueError, match="vocab.json: .* stands for no byte"):
            unspell("a" + stranger, "vocab.json")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"a": 1, "a": 2}',
        b'{"model": {"vocab": {"a": NaN}}}',
        b"[" * 200_000,
        b'{"id": ' + b"9" * 10_000 + b"}",
    ],
)
def test_files_that_are_not_json(tmp_path, data):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="tokenizer.json"):
        Tokenizer.load(path)


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    with open(path, "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match="at most"):
        Tokenizer.load(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path)


def _nodes(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _nodes(inner, (*path, key))


JUNK = [None, True, -1, 10**30, 1.5, "", "x", "\ud800", [], [[]], {}, {"type": "BPE"}, ["a", "b"]]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_mutated_files_load_or_are_refused(trained, seed):
    """Nothing but ValueError, and what loads encodes losslessly."""
    text = to_json(trained["gpt2"].parts())
    paths = [path for path in _nodes(json.loads(text)) if path]
    structural = [path for path in paths if path[0] != "model" or len(path) == 2]
    chooser = random.Random(seed)
    for _ in range(times(1500) if seed else 150):
        contents = json.loads(text)
        changed(chooser.choice([chooser.choice(paths), chooser.choice(structural)]), chooser.choice(JUNK))(contents)
        mutated = json.dumps(contents)
        try:
            parts = from_json(mutated)
            tokenizer = Tokenizer(parts.vocab, parts.merges, parts.special_tokens, parts.pattern)
        except ValueError:
            continue
        assert tokenizer.decode(tokenizer.encode("It's the 🌍, 12!")) == "It's the 🌍, 12!"


def test_truncated_files_are_refused(trained):
    data = to_json(trained["gpt2"].parts()).rstrip().encode()
    for length in range(0, len(data), 211):
        with pytest.raises(ValueError, match="JSON"):
            from_json(data[:length])


def test_a_special_token_spelled_like_an_ordinary_one_cannot_be_saved(trained):
    parts = trained["gpt2"].parts()
    tokenizer = Tokenizer(parts.vocab, parts.merges, [*parts.special_tokens, "Ġ"], "gpt2")
    with pytest.raises(ValueError, match="'Ġ'.*spells an ordinary token like this"):
        to_json(tokenizer.parts())


def test_saving_over_a_file_that_is_no_directory(trained, tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ValueError, match="expected a directory"):
        trained["gpt2"].save(tmp_path / "taken")


@settings(max_examples=20)
@given(st.lists(st.text("<|ab>", min_size=2, max_size=5), max_size=4, unique=True), st.text("<|ab>", max_size=20))
def test_overlapping_special_tokens_match_as_in_hugging_face(specials, text):
    tokenizer = Tokenizer.train_from_iterator(["x"], 256 + len(specials), specials)
    other = tokenizers.Tokenizer.from_str(to_json(tokenizer.parts()))
    assert tokenizer.encode(text, allowed_special="all") == other.encode(text).ids
