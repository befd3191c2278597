"""Writing shards: batches and threads change nothing, and what is interrupted goes on."""

import contextlib
import json
import random
import shutil
import sys

import numpy as np
import pytest

from groundup.data import shard_progress, shard_writing, write_shards
from groundup.tokenizer import Tokenizer
from tests.data.killed_writer import write
from tests.distributed import process_server
from tests.thorough import times

from .conftest import Bytes

TEXTS = [f"Document number {n} says it {n % 7} times. " * (n % 5) for n in range(200)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train_from_iterator(TEXTS, 400)


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("batch", [1, 100, 5_000])
@pytest.mark.parametrize("workers", [1, 3])
def test_neither_batches_nor_threads_change_anything(tmp_path, trained, monkeypatch, batch, workers):
    plain = write_shards(TEXTS, trained, tmp_path / "plain", shard_tokens=700)
    monkeypatch.setattr(shard_writing, "_BATCH", batch)
    write_shards(TEXTS, trained, tmp_path / "other", shard_tokens=700, workers=workers)
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "other")
    ids = [token for text in TEXTS if text for token in (*trained.encode(text), trained.end_of_text)]
    assert plain.tokens.tolist() == ids
    assert plain.num_documents == sum(map(bool, TEXTS))


def interrupted_after(count):
    yield from TEXTS[:count]
    raise KeyboardInterrupt


@pytest.mark.parametrize("counts", [[50], [1, 2, 199], [120, 60]])
def test_what_was_interrupted_goes_on(tmp_path, trained, monkeypatch, counts):
    write_shards(TEXTS, trained, tmp_path / "whole", shard_tokens=700)
    monkeypatch.setattr(shard_writing, "_BATCH", 60)
    monkeypatch.setattr(shard_progress, "SECONDS_BETWEEN_SAVES", 0.0)
    for count in counts:
        with pytest.raises(KeyboardInterrupt):
            write_shards(interrupted_after(count), trained, tmp_path / "set", shard_tokens=700, resume=True)
        assert not (tmp_path / "set").exists()
    state = json.loads((tmp_path / ".set.partial" / "state.json").read_text())
    assert state["documents"] + state["empty_documents"] > max(counts) - 5
    write_shards(TEXTS, trained, tmp_path / "set", shard_tokens=700, resume=True)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "set")
    assert not (tmp_path / ".set.partial").exists()


@pytest.mark.parametrize("change", ["texts", "tokenizer", "state", "shard", "shard_tokens"])
def test_anything_that_changed_meanwhile_is_noticed(tmp_path, trained, monkeypatch, change):
    monkeypatch.setattr(shard_writing, "_BATCH", 60)
    monkeypatch.setattr(shard_progress, "SECONDS_BETWEEN_SAVES", 0.0)
    with pytest.raises(KeyboardInterrupt):
        write_shards(interrupted_after(100), trained, tmp_path / "set", resume=True)
    texts, tokenizer, partial, size = TEXTS, trained, tmp_path / ".set.partial", 2**30
    if change == "texts":
        texts = ["Something else.", *TEXTS[1:]]
    elif change == "tokenizer":
        tokenizer = Bytes()
    elif change == "state":
        (partial / "state.json").write_text("{")
    elif change == "shard":
        (partial / "shard-00000.bin").write_bytes(b"")
    else:
        size = 500
    write_shards(texts, tokenizer, tmp_path / "whole", shard_tokens=size)
    if change == "texts":
        with pytest.raises(ValueError, match="ids of other texts; remove it"):
            write_shards(texts, tokenizer, tmp_path / "set", resume=True)
        shutil.rmtree(partial)
    write_shards(texts, tokenizer, tmp_path / "set", shard_tokens=size, resume=True)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "set")


def writer(tokenizer, folder):
    """A process that writes, and what tells of its batches."""
    server = process_server()
    heard, told = server.Pipe(duplex=False)
    child = server.Process(target=write, args=(str(tokenizer), str(folder), told))
    child.start()
    told.close()
    return child, heard


def listen(heard, batches):
    """Until so many batches are told of, or nobody is left to tell."""
    with contextlib.suppress(EOFError):
        for _ in range(batches):
            heard.recv()


def write_to_the_end(tokenizer, folder):
    child, heard = writer(tokenizer, folder)
    listen(heard, sys.maxsize)
    child.join()
    assert child.exitcode == 0


def kill_at_random_moments(folder, tokenizer, kills, seed):
    """Whether a run that was killed so often wrote what an undisturbed one does."""
    tokenizer.save(folder / "tokenizer")
    write_to_the_end(folder / "tokenizer", folder / "whole")
    draw = random.Random(seed)
    for _ in range(kills):
        child, heard = writer(folder / "tokenizer", folder / "set")
        listen(heard, draw.randrange(1, 120))
        child.kill()
        child.join()
        if (folder / "set").exists():
            break
    if not (folder / "set").exists():
        write_to_the_end(folder / "tokenizer", folder / "set")
    return files_of(folder / "whole") == files_of(folder / "set")


def test_killed_and_gone_on(tmp_path, trained):
    assert kill_at_random_moments(tmp_path, trained, 3, 0)


@pytest.mark.slow
def test_killed_often_and_gone_on(tmp_path, trained):
    assert kill_at_random_moments(tmp_path, trained, times(6), 1)


def test_wide_ids(tmp_path):
    vocab = {byte: bytes([byte]) for byte in range(256)} | {70_000: b"Do"}
    tokenizer = Tokenizer(vocab, [(b"D", b"o")], ["<|endoftext|>"])
    written = write_shards(TEXTS[:10], tokenizer, tmp_path / "set")
    assert written.tokens.dtype == np.uint32
    assert written.tokens.tolist().count(tokenizer.end_of_text) == written.num_documents
