"""Shards: the ids come back, and nothing that happens to the files goes unnoticed."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.corpus import Document
from groundup.data import ShardSet, shard_writing, shards, write_shards
from groundup.tokenizer import Tokenizer

from .conftest import Bytes


def test_by_hand(tmp_path, tokenizer):
    written = write_shards(["ab", "c"], tokenizer, tmp_path / "set")
    assert written.tokens.tolist() == [97, 98, 256, 99, 256]
    assert written.tokens.dtype == np.uint16
    assert (written.num_tokens, written.num_documents, written.text_bytes) == (5, 2, 3)
    assert (tmp_path / "set" / "shard-00000.bin").read_bytes() == bytes([97, 0, 98, 0, 0, 1, 99, 0, 0, 1])
    assert written.read(1, 3).tolist() == [98, 256, 99]
    assert ShardSet.open(tmp_path / "set").manifest == written.manifest


@pytest.mark.parametrize(("vocab_size", "kind"), [(257, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32")])
def test_the_type_follows_the_vocabulary(tmp_path, vocab_size, kind):
    tokenizer = Bytes(vocab_size)
    written = write_shards(["né"], tokenizer, tmp_path / "set")
    assert written.manifest["dtype"] == written.tokens.dtype.name == kind
    assert written.read(0, 4).tolist() == [*"né".encode(), vocab_size - 1]


@settings(max_examples=25)  # every example waits for the disk
@given(
    texts=st.lists(st.text(max_size=8), min_size=1, max_size=10).filter(any),
    shard_tokens=st.integers(1, 30),
)
def test_any_texts_in_files_of_any_size(tmp_path_factory, texts, shard_tokens):
    expected = [i for text in texts if text for i in [*text.encode(), 256]]
    folder = tmp_path_factory.mktemp("any") / "set"
    written = write_shards(texts, Bytes(), folder, shard_tokens=shard_tokens)
    assert written.tokens.tolist() == expected
    assert len(written.files) == -(-len(expected) // shard_tokens)
    places = np.arange(2 * len(expected)).reshape(2, -1) % len(expected)
    assert written.gather(places).tolist() == [expected, expected]
    assert written.manifest["documents"] + written.manifest["empty_documents"] == len(texts)
    assert written.text_bytes == sum(len(t.encode()) for t in texts)


def test_a_real_tokenizer_and_a_long_document(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writing, "_BATCH", 100)
    text = "Where the parts of a long text are cut makes no difference. " * 20
    tokenizer = Tokenizer.train_from_iterator([text], 280, special_tokens=("<|endoftext|>",))
    written = write_shards([text, "short"], tokenizer, tmp_path / "set")
    expected = [
        *tokenizer.encode(text),
        tokenizer.end_of_text,
        *tokenizer.encode("short"),
        tokenizer.end_of_text,
    ]
    assert written.tokens.tolist() == expected
    assert written.manifest["tokenizer"] == tokenizer.fingerprint
    assert written.end_of_text == tokenizer.end_of_text


def test_where_the_texts_come_from(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("from a file")
    sources = [
        tmp_path / "a.txt",
        str(tmp_path / "a.txt"),
        [tmp_path / "a.txt"],
        [Document("from a file", "x")],
    ]
    sets = [write_shards(source, tokenizer, tmp_path / str(i)) for i, source in enumerate(sources)]
    assert len({s.fingerprint for s in sets}) == 1
    with pytest.raises(ValueError, match="is the name of a file: pass Path"):
        write_shards([str(tmp_path / "a.txt")], tokenizer, tmp_path / "no")


def test_progress_counts_bytes_of_text(tmp_path, tokenizer):
    seen = []
    write_shards(["né", "b"], tokenizer, tmp_path / "set", progress=seen.append)
    assert seen == [4]


def test_progress_is_told_after_each_batch(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(shard_writing, "_BATCH", 2)
    seen = []
    write_shards(["né", "b", "", "cd"], tokenizer, tmp_path / "set", progress=seen.append)
    assert seen == [3, 4, 6]


@pytest.mark.parametrize("shift", [-100, 200])
def test_an_id_outside_the_vocabulary_names_the_document_and_leaves_nothing(tmp_path, shift):
    with pytest.raises(ValueError, match="document 0: token id .* outside 0..256"):
        write_shards(["a"], Bytes(shift=shift), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path, tokenizer):
    def texts():
        yield "one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(texts(), tokenizer, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_no_text(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="no documents"):
        write_shards([], tokenizer, tmp_path / "set")
    with pytest.raises(ValueError, match="only empty ones"):
        write_shards(["", ""], tokenizer, tmp_path / "set")
    with pytest.raises(ValueError, match="shard_tokens"):
        write_shards(["a"], tokenizer, tmp_path / "set", shard_tokens=0)


def test_nothing_of_the_users_is_replaced(tmp_path, tokenizer):
    write_shards(["a"], tokenizer, tmp_path / "set")
    with pytest.raises(ValueError, match="overwrite=True"):
        write_shards(["b"], tokenizer, tmp_path / "set")
    assert write_shards(["b"], tokenizer, tmp_path / "set", overwrite=True).tokens.tolist() == [98, 256]
    (tmp_path / "set" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"not empty.*thesis\.txt"):
        write_shards(["b"], tokenizer, tmp_path / "set", overwrite=True)
    with pytest.raises(ValueError, match="a file stands"):
        write_shards(["b"], tokenizer, tmp_path / "set" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    assert write_shards(["b"], tokenizer, tmp_path / "empty").num_tokens == 2


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


FAULTS = {
    "cut short": lambda f: (f / "shard-00001.bin").write_bytes((f / "shard-00001.bin").read_bytes()[:-2]),
    "longer": lambda f: (f / "shard-00001.bin").write_bytes((f / "shard-00001.bin").read_bytes() + b"\0\0"),
    "one bit": lambda f: (f / "shard-00000.bin").write_bytes(b"\x60" + (f / "shard-00000.bin").read_bytes()[1:]),
    "exchanged": lambda f: [
        (f / "shard-00000.bin").rename(f / "x"),
        (f / "shard-00001.bin").rename(f / "shard-00000.bin"),
        (f / "x").rename(f / "shard-00001.bin"),
    ],
    "removed": lambda f: (f / "shard-00001.bin").unlink(),
    "manifest edited": lambda f: edit_manifest(f, tokens=3),
    "manifest cut": lambda f: (f / "manifest.json").write_text("{"),
    "manifest of something else": lambda f: (f / "manifest.json").write_text("[]"),
    "manifest without fingerprint": lambda f: edit_manifest(f, fingerprint=None),
    "path outside": lambda f: edit_manifest(f, shards=[{"name": "../../etc/passwd", "bytes": 1, "sha256": ""}]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_change_is_noticed(tmp_path, tokenizer, fault):
    write_shards(["abc", "defg"], tokenizer, tmp_path / "set", shard_tokens=4)
    ShardSet.open(tmp_path / "set")
    FAULTS[fault](tmp_path / "set")
    with pytest.raises(ValueError, match=str(tmp_path)):
        ShardSet.open(tmp_path / "set")


def test_a_consistent_manifest_cannot_name_a_file_outside(tmp_path, tokenizer):
    write_shards(["abc"], tokenizer, tmp_path / "set")
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    del manifest["fingerprint"]
    manifest["shards"][0]["name"] = "../shard-00000.bin"
    edit_manifest(tmp_path / "set", **manifest, fingerprint=shards.fingerprint_of(manifest))
    with pytest.raises(ValueError, match="not a shard"):
        ShardSet.open(tmp_path / "set")


def test_no_set_here(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shard set"):
        ShardSet.open(tmp_path)


def test_a_change_while_in_use_is_noticed(make_shards):
    for change in ("cut", "replace", "remove"):
        opened = make_shards(100, shard_tokens=40)
        opened.check_unchanged()
        path = opened.directory / "shard-00001.bin"
        if change == "cut":
            path.write_bytes(path.read_bytes()[:10])
        elif change == "replace":
            shutil.copy(path, path.with_name("new"))
            path.with_name("new").replace(path)
        else:
            path.unlink()
        with pytest.raises(ValueError, match="changed or removed while in use"):
            opened.check_unchanged()


def test_reading_outside(make_shards):
    opened = make_shards(100)
    assert len(opened.read(0, 100)) == 100 and len(opened.read(100, 0)) == 0
    for start, count in ((-1, 2), (99, 2), (0, 101), (5, -1)):
        with pytest.raises(ValueError, match="outside the set"):
            opened.read(start, count)
