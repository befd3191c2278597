"""Tokenizer files that are damaged, or made to do damage: loaded soundly or refused, in bounded memory."""

import base64
import json
import random
import struct
import tracemalloc

import pytest

from groundup.tokenizer import Tokenizer, formats, gguf, tiktoken_ranks
from groundup.tokenizer.hugging_face import MAX_ITEMS, from_json, to_json
from groundup.tokenizer.parts import MAX_FILE_BYTES
from groundup.tokenizer.spelling import byte_alphabet, spell
from tests.thorough import times
from tests.tokenizer.vocabularies import Reference

TEXT = "It's the 🌍, 12!\x00\n "
BYTES = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)).encode()


def memory_of(function, *arguments):
    """The most that a call held at a time, in bytes; the call has to end in a ValueError."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def rank_line(token, rank):
    return base64.b64encode(token) + b" %d\n" % rank


# A small GGUF file, written by hand: the format is what is tested.


def string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def strings(texts):
    return struct.pack("<IIQ", 9, 8, len(texts)) + b"".join(map(string, texts))


def integers(numbers):
    return struct.pack("<IIQ", 9, 5, len(numbers)) + struct.pack(f"<{len(numbers)}i", *numbers)


def text_value(text):
    return struct.pack("<I", 8) + string(text)


def gguf_file(entries, version=3, count=None):
    header = b"GGUF" + struct.pack("<IQQ", version, 0, len(entries) if count is None else count)
    return header + b"".join(string(key) + value for key, value in entries.items())


def entries_of(tokenizer):
    special = {token_id: token for token, token_id in tokenizer.special_tokens.items()}
    tokens = [special.get(i) or spell(token) for i, token in sorted(tokenizer.vocab.items())]
    return {
        "general.architecture": text_value("llama"),
        "general.languages": strings(["en", "de"]),
        "llama.rope.freq_base": struct.pack("<If", 6, 10000.0),
        "tokenizer.ggml.model": text_value("gpt2"),
        "tokenizer.ggml.pre": text_value("gpt-2"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": integers([3 if i in special else 1 for i in sorted(tokenizer.vocab)]),
        "tokenizer.ggml.merges": strings([f"{spell(left)} {spell(right)}" for left, right in tokenizer.merges]),
    }


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_from_iterator([TEXT * 2, "the cat in the hat"], 290, ["<|endoftext|>", "<|é|>"])


@pytest.fixture(scope="module")
def files(tokenizer):
    """kind -> (name, contents) of one tokenizer."""
    return {
        "json": ("tokenizer.json", to_json(tokenizer.parts()).encode()),
        "ranks": ("t.tiktoken", tiktoken_ranks.to_ranks(tokenizer.parts())),
        "gguf": ("t.gguf", gguf_file(entries_of(tokenizer))),
    }


def loaded(path, kind):
    return formats.load(path, "gpt2" if kind == "ranks" else None)


@pytest.mark.parametrize("kind", ["json", "ranks", "gguf"])
def test_the_sound_file_is_read(files, tokenizer, kind, tmp_path):
    name, data = files[kind]
    (tmp_path / name).write_bytes(data)
    parts = loaded(tmp_path / name, kind)
    assert Reference(parts).encode(TEXT) == tokenizer.encode(TEXT)
    assert parts.ordinary() == tokenizer.parts().ordinary()
    assert parts.special_tokens == ({} if kind == "ranks" else tokenizer.special_tokens)


def mutants(data, count, seed):
    """Copies of a file with a few bytes changed, inserted, deleted, repeated or cut off."""
    chooser = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(chooser.choice((1, 1, 2, 5))):
            at, size = chooser.randrange(len(mutant) + 1), chooser.choice((1, 1, 4, 8, 60))
            match chooser.randrange(6):
                case 0:
                    mutant[at : at + 1] = bytes([chooser.randrange(256)])
                case 1:
                    mutant[at : at + size] = b"\xff" * size
                case 2:
                    del mutant[at : at + size]
                case 3:
                    mutant[at:at] = mutant[max(0, at - size) : at]
                case 4:
                    mutant[at:at] = str(10 ** chooser.randrange(1, 30)).encode()
                case 5:
                    del mutant[max(at, 8) :]
        yield bytes(mutant)


@pytest.mark.parametrize("kind", ["json", "ranks", "gguf"])
@pytest.mark.parametrize("count", [600, pytest.param(times(1_000), marks=pytest.mark.slow)])
def test_mutants_are_sound_or_refused(files, kind, count, tmp_path):
    name, data = files[kind]
    path, accepted = tmp_path / name, 0
    for mutant in mutants(data, count, seed=count):
        path.write_bytes(mutant)
        try:
            parts = loaded(path, kind)
            tokenizer = Tokenizer.from_parts(parts)
        except ValueError:
            continue
        accepted += 1
        if {bytes([byte]) for byte in range(256)} <= set(parts.ordinary().values()):
            assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert 0 < accepted < count


@pytest.mark.parametrize("kind", ["json", "gguf"])
def test_every_truncation_is_refused(files, kind, tmp_path):
    name, data = files[kind]
    for length in range(0, len(data.rstrip()), 97):
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(ValueError, match=name):
            loaded(tmp_path / name, kind)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BYTES + rank_line(b"ab", 255), "line 257: the rank 255 is that of"),
        (BYTES + rank_line(b"a", 300), "b'a' has two ids: 97 and 300"),
        (BYTES + rank_line(b"ab", 10**9), "line 257: rank 1000000000"),
        (BYTES + b"YWI= " + b"9" * 5000 + b"\n", "line 257"),
        (BYTES + b"YWI= -1\n", "line 257: b'YWI= -1' is not"),
        (BYTES + b"YWI= 1_000\n", "line 257"),
        (BYTES + b"YWI 300\n", "line 257"),
        (BYTES + b"Y*WI= 300\n", "line 257"),
        (BYTES + b"YWI=\n", "line 257"),
        (BYTES + b"YWI= 300 x\n", "line 257"),
        (BYTES + b" 300\n", "line 257"),
        (BYTES[:-9], "1 of the 256 bytes"),
        (b"", "256 of the 256 bytes"),
        (b"\n" * (1 << 20) + b"\n", "more than 1048576 lines"),
        (rank_line(b"a", 0), "255 of the 256 bytes"),
        (BYTES + rank_line(b"x" * 1_000_000, 256), "1000000 bytes: too large to be real"),
    ],
)
def test_damaged_ranks_are_refused(data, message, tmp_path):
    (tmp_path / "x.tiktoken").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        formats.load(tmp_path / "x.tiktoken", "gpt2")
    assert str(tmp_path / "x.tiktoken") in str(caught.value)


def test_unknown_ranks_need_a_pattern(tmp_path):
    (tmp_path / "x.tiktoken").write_bytes(BYTES + rank_line(b"ab", 256))
    with pytest.raises(ValueError, match="does not say its pattern, and this one is none of r50k_base.*pass pattern="):
        formats.load(tmp_path / "x.tiktoken")
    with pytest.raises(ValueError, match="no such name; did you mean 'gpt2'"):
        formats.load(tmp_path / "x.tiktoken", "gpt-2")
    with pytest.raises(ValueError, match="special token 'ab' is a token of the file: every text could forge it"):
        formats.load(tmp_path / "x.tiktoken", "gpt2", ["ab"])
    parts = formats.load(tmp_path / "x.tiktoken", "cl100k", ["<a>", "<b>"])
    assert (parts.pattern, parts.special_tokens) == ("cl100k", {"<a>": 257, "<b>": 258})
    assert parts.vocab[258] == b"<b>"


def test_ranks_are_recognised_by_their_contents(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(BYTES)
    assert formats.load(tmp_path / "tokenizer.model", "gpt2").vocab[97] == b"a"


def with_entry(key, value):
    return lambda entries: entries | {key: value}


def without(key):
    return lambda entries: {name: value for name, value in entries.items() if name != key}


HUGE = struct.pack("<Q", 10**9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("tokenizer.ggml.model"), "tokenizer.ggml.model: None"),
        (with_entry("tokenizer.ggml.model", text_value("llama")), "tokenizer.ggml.model: 'llama' is not supported"),
        (with_entry("tokenizer.ggml.pre", text_value("qwen3")), "pre: 'qwen3' is not supported.*did you mean 'qwen2'"),
        (without("tokenizer.ggml.pre"), "pre: 'default'"),
        (with_entry("tokenizer.ggml.pre", strings(["qwen2"])), "pre: .*qwen2.* is not supported"),
        (without("tokenizer.ggml.merges"), "tokenizer.ggml.merges: expected a list of strings"),
        (with_entry("tokenizer.ggml.tokens", integers([1, 2])), "tokenizer.ggml.tokens: expected a list of strings"),
        (with_entry("tokenizer.ggml.tokens", text_value("a")), "tokenizer.ggml.tokens: expected a list of strings"),
        (with_entry("tokenizer.ggml.token_type", integers([1, 2])), "token_type: not one number for each"),
        (with_entry("tokenizer.ggml.token_type", text_value("1")), "token_type: not one number for each"),
        (with_entry("tokenizer.ggml.merges", strings(["a"])), r"merges\[0\]: \['a'\] is not a pair"),
        (with_entry("tokenizer.ggml.merges", strings(["a ", "b c"])), r"merges\[0\]: '' is not in the vocabulary"),
        (with_entry("tokenizer.ggml.merges", strings([b"\xff"])), "'tokenizer.ggml.merges': b'.xff' is not UTF-8"),
        (with_entry("z", struct.pack("<IIQ", 9, 9, 1)), "'z': a list of kind 9"),
        (with_entry("z", struct.pack("<IIQ", 9, 8, 5)), "0 bytes are announced, more than are left"),
        (with_entry("z", strings(["a"])[:-1]), "1 bytes are announced, more than are left"),
        (with_entry(b"\xff", text_value("x")), "'a key': not UTF-8"),
        (with_entry("z", struct.pack("<I", 77)), "'z': no kind of value has the number 77"),
        (with_entry("z", struct.pack("<I", 8) + HUGE), "1000000000 bytes are announced, 0 are left"),
        (with_entry("z", struct.pack("<II", 9, 8) + HUGE), "'z': 1000000000 items"),
        (with_entry("z", struct.pack("<II", 9, 12) + HUGE), "'z': 1000000000 items"),
        (with_entry("z", struct.pack("<IIQ", 9, 12, 1 << 20)), "8388608 bytes are announced"),
        (with_entry("z", struct.pack("<I", 8) + b"\xff" * 8), "18446744073709551615 bytes are announced"),
    ],
)
def test_damaged_gguf_is_refused(tokenizer, change, message, tmp_path):
    (tmp_path / "x.gguf").write_bytes(gguf_file(change(entries_of(tokenizer))))
    with pytest.raises(ValueError, match=message) as caught:
        formats.load(tmp_path / "x.gguf")
    assert str(tmp_path / "x.gguf") in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"GGML" + bytes(40), "not a GGUF file"),
        (gguf_file({}, version=1), "version 1"),
        (gguf_file({}, version=3 << 24), "little-endian"),
        (gguf_file({}, count=10**9), "1000000000 entries"),
        (gguf_file({}, count=2), "are left of the metadata"),
        (gguf_file({"a": text_value("x")}, count=2) + string("a") + text_value("y"), "'a' occurs twice"),
    ],
)
def test_damaged_headers_of_gguf(data, message, tmp_path):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        formats.load(tmp_path / "x.gguf")


def test_a_gguf_token_that_is_there_twice(tokenizer, tmp_path):
    tokens = [*byte_alphabet(), "a"]
    entries = entries_of(tokenizer) | {"tokenizer.ggml.tokens": strings(tokens)}
    (tmp_path / "x.gguf").write_bytes(gguf_file(without("tokenizer.ggml.token_type")(entries)))
    with pytest.raises(ValueError, match="tokens: 'a' is there twice"):
        formats.load(tmp_path / "x.gguf")


def test_gguf_tokens_that_are_unused_or_defined_by_the_user(tmp_path):
    tokens = [*byte_alphabet(), "<tool>", "[PAD]", "[PAD]"]
    entries = {
        "tokenizer.ggml.model": text_value("gpt2"),
        "tokenizer.ggml.pre": text_value("mystery"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": integers([1] * 256 + [4, 5, 5]),
        "tokenizer.ggml.merges": strings([]),
    }
    (tmp_path / "x.gguf").write_bytes(gguf_file(entries))
    parts = formats.load(tmp_path / "x.gguf", "qwen2")
    assert (len(parts.vocab), parts.special_tokens, parts.pattern) == (257, {"<tool>": 256}, "qwen2")
    with pytest.raises(ValueError, match="lists its special tokens itself"):
        formats.load(tmp_path / "x.gguf", special_tokens=["a"])


def test_announced_sizes_take_no_memory(tmp_path):
    (tmp_path / "x.gguf").write_bytes(gguf_file({"z": struct.pack("<IIQ", 9, 12, gguf.MAX_ITEMS)}))
    (tmp_path / "y.gguf").write_bytes(gguf_file({"z": struct.pack("<IIQ", 9, 8, gguf.MAX_ITEMS)}))
    assert memory_of(formats.load, tmp_path / "x.gguf") < 1 << 20
    assert memory_of(formats.load, tmp_path / "y.gguf") < 1 << 20


def test_a_json_of_nothing_but_empty_lists_is_not_parsed():
    data = b"[" + b"[]," * (MAX_ITEMS + 1) + b"[]]"
    assert memory_of(from_json, data) < 1 << 20


@pytest.mark.parametrize("name", ["x.tiktoken", "tokenizer.json", "x"])
def test_a_file_too_large_is_not_read(name, tmp_path):
    with open(tmp_path / name, "wb") as file:
        file.write(b"{" if name.endswith("json") else b"YQ== 1\n")
        file.truncate(MAX_FILE_BYTES + 1)
    assert memory_of(formats.load, tmp_path / name, *(["gpt2"] if "json" not in name else [])) < 1 << 20


def test_a_merge_that_names_its_own_result(tokenizer):
    contents = json.loads(to_json(tokenizer.parts()))
    contents["model"]["merges"].append(["the", ""])
    with pytest.raises(ValueError, match="'' is not in the vocabulary"):
        from_json(json.dumps(contents))
    contents["model"]["vocab"][""] = 999
    with pytest.raises(ValueError, match="empty"):
        Tokenizer.from_parts(from_json(json.dumps(contents)))


def test_a_token_of_a_megabyte_does_no_harm(tokenizer):
    contents = json.loads(to_json(tokenizer.parts()))
    contents["model"]["vocab"]["x" * 1_000_000] = 999
    large = Tokenizer.from_parts(from_json(json.dumps(contents)))
    assert large.encode("x" * 1_000_000 + TEXT) == tokenizer.encode("x" * 1_000_000 + TEXT)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n", b"hello world\n", b"\x0a\x09\x0a\x05<unk>", b"a 1 2\n"])
def test_other_files_are_named_as_such(data, tmp_path):
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(ValueError, match=r"x.model: neither a tokenizer.json .* nor tiktoken's ranks .* nor GGUF"):
        formats.load(tmp_path / "x.model")


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="without tokenizer.json, vocab.json with merges.txt, encoder.json"):
        formats.load(tmp_path)


class TestGPT2Files:
    @pytest.fixture
    def folder(self, tokenizer, tmp_path):
        formats.export(tokenizer.parts(), tmp_path, "gpt2")
        return tmp_path

    def test_they_come_back(self, folder, tokenizer):
        assert formats.load(folder) == tokenizer.parts()
        assert formats.load(folder / "merges.txt") == tokenizer.parts()

    def test_either_pair_of_names(self, folder, tokenizer):
        (folder / "vocab.json").rename(folder / "encoder.json")
        (folder / "merges.txt").rename(folder / "vocab.bpe")
        assert formats.load(folder) == tokenizer.parts()

    def test_special_tokens_may_be_said(self, folder):
        parts = formats.load(folder, special_tokens=["<|endoftext|>", "<new>"])
        assert parts.special_tokens == {"<|endoftext|>": 278, "<new>": 280}

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("vocab.json", b"{", "not valid JSON"),
            ("vocab.json", b"[]", "expected dict"),
            ("vocab.json", b'{"a": "b"}', r"vocab.json\['a'\]: expected int"),
            ("vocab.json", b'{"a": 1, "b": 1}', "the id 1 is that of b'b' too"),
            ("merges.txt", b"\xff\xfe", "not UTF-8"),
            ("merges.txt", b"#version: 0.2\na b c\n", r"merges.txt\[0\]: \['a', 'b', 'c'\] is not a pair"),
            ("merges.txt", b"t h\nq zz\n", r"merges.txt\[1\]: 'zz' is not in the vocabulary"),
        ],
    )
    def test_damage_is_refused(self, folder, name, data, message):
        (folder / name).write_bytes(data)
        with pytest.raises(ValueError, match=message) as caught:
            formats.load(folder)
        assert str(folder) in str(caught.value)


def test_ranks_cannot_say_what_merges_in_another_order_do(tokenizer, tmp_path):
    parts = tokenizer.parts()
    swapped = formats.Parts(parts.vocab, parts.merges[::-1], parts.special_tokens, "gpt2")
    with pytest.raises(ValueError, match="makes id .* after id .*, so ids are no ranks"):
        formats.export(swapped, tmp_path / "x", "tiktoken")
    fewer = formats.Parts(parts.vocab, parts.merges[1:], parts.special_tokens, "gpt2")
    with pytest.raises(ValueError, match="its bytes encode to other tokens here"):
        formats.export(fewer, tmp_path / "x", "tiktoken")


def test_what_was_trained_is_the_same_as_ranks_and_as_gpt2_files(tokenizer, tmp_path):
    formats.export(tokenizer.parts(), tmp_path / "x", "tiktoken")
    parts = formats.load(tmp_path / "x", "gpt2", tokenizer.special_tokens)
    assert Reference(parts).encode(TEXT * 3) == tokenizer.encode(TEXT * 3)
    formats.export(parts, tmp_path / "gpt2", "gpt2")
    assert formats.load(tmp_path / "gpt2") == tokenizer.parts()
