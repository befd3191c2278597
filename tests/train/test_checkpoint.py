import errno
import io
import json
import logging
import os
import random
import shutil
import signal

import pytest
import torch

import groundup.files
import groundup.tensorfile
from groundup.train import checkpoint
from groundup.train.checkpoint import MANIFEST, STATE, checkpoints, latest, load, prune, save, verify

TENSORS = {
    "model.embed.weight": torch.arange(12.0).view(3, 4),
    "model.half": torch.randn(5).to(torch.bfloat16),
    "optimizer.step.embed.weight": torch.tensor(3.0),
    "rng.cpu": torch.get_rng_state(),
    "empty": torch.zeros(0, 2),
}
STATE_OF_RUN = {"run": {"step": 7, "seconds": 0.1 + 0.2}, "list": [1, None, "ü"]}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def save_step(folder, step, **options):
    tensors = TENSORS | {"model.embed.weight": torch.full((3, 4), float(step))}
    return save(folder, step, tensors=tensors, state=STATE_OF_RUN | {"step": step}, **options)


def test_round_trip_to_the_bit(tmp_path):
    path = save(tmp_path, 7, tensors=TENSORS, state=STATE_OF_RUN)
    assert path == tmp_path / "step-7" == latest(tmp_path)
    saved = load(path)
    assert same(saved.tensors, TENSORS) and saved.state == STATE_OF_RUN and saved.step == 7
    assert os.listdir(tmp_path) == ["step-7"]


def test_shards_split_by_size_and_count(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 100)
    monkeypatch.setattr(checkpoint, "SHARD_TENSORS", 2)
    path = save(tmp_path, 1, tensors=TENSORS, state={})
    assert len(list(path.glob("*.safetensors"))) == 4
    assert same(load(path).tensors, TENSORS)


def test_nothing_to_save_and_nothing_to_find(tmp_path):
    assert latest(tmp_path) is None and latest(tmp_path / "absent") is None
    assert load(save(tmp_path, 0, tensors={}, state={})).tensors == {}


def test_latest_counts_numbers_and_not_letters(tmp_path):
    for step in (9, 10, 100):
        save_step(tmp_path, step)
    (tmp_path / "step-final").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert latest(tmp_path) == tmp_path / "step-100"
    assert [p.name for p in checkpoints(tmp_path)] == ["step-100", "step-10", "step-9"]


def test_a_step_saved_twice_gets_a_new_name(tmp_path):
    save_step(tmp_path, 5)
    second = save(tmp_path, 5, tensors={}, state={"second": 1})
    assert second.name == "step-5.1" and latest(tmp_path) == second
    assert load(second).step == 5 and load(tmp_path / "step-5").state["step"] == 5


def test_keep_drops_the_oldest(tmp_path):
    for step in range(1, 6):
        save_step(tmp_path, step, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-4", "step-5"]
    with pytest.raises(ValueError, match="at least 1"):
        prune(tmp_path, 0)


def test_the_only_good_checkpoint_is_never_dropped(tmp_path):
    for step in (1, 2, 3):
        save_step(tmp_path, step)
    for step in (2, 3):
        (tmp_path / f"step-{step}" / STATE).write_text("{}")
    prune(tmp_path, 2)
    assert latest(tmp_path) == tmp_path / "step-1"


def test_state_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    for state in ({"x": float("nan")}, {"x": float("inf")}):
        with pytest.raises(ValueError):
            save(tmp_path, 1, tensors={}, state=state)
    assert os.listdir(tmp_path) == []


# ---- damage ----


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("flips", [200, pytest.param(2_000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_detected(tmp_path, flips):
    path = save_step(tmp_path, 1)
    files = sorted(path.iterdir())
    rng = random.Random(0)
    for _ in range(flips):
        file = rng.choice(files)
        good = file.read_bytes()
        flip(file, rng)
        with pytest.raises(ValueError, match=file.name):
            verify(path)
        file.write_bytes(good)
    verify(path)


def test_a_damaged_tensor_is_named_and_the_older_checkpoint_taken(tmp_path, caplog):
    save_step(tmp_path, 1)
    shard = save_step(tmp_path, 2) / "tensors-00001.safetensors"
    data = bytearray(shard.read_bytes())
    at = bytes(data).index(torch.full((3, 4), 2.0).numpy().tobytes())
    data[at] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"in tensor model\.embed\.weight"):
        load(tmp_path / "step-2")
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path) == tmp_path / "step-1"
    assert "step-2" in caplog.text and "passed over" in caplog.text


def truncate(path):
    file = path / "tensors-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def swap(path):
    a, b = path / STATE, path / "tensors-00001.safetensors"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


DAMAGE = {
    "truncated shard": truncate,
    "grown shard": lambda p: (p / STATE).write_bytes((p / STATE).read_bytes() + b"\n"),
    "empty state": lambda p: (p / STATE).write_bytes(b""),
    "no state": lambda p: (p / STATE).unlink(),
    "no shard": lambda p: (p / "tensors-00001.safetensors").unlink(),
    "no manifest": lambda p: (p / MANIFEST).unlink(),
    "files swapped": swap,
    "shard doubled": lambda p: shutil.copy(p / "tensors-00001.safetensors", p / "tensors-00002.safetensors"),
    "shard renamed": lambda p: (p / "tensors-00001.safetensors").rename(p / "tensors-00009.safetensors"),
    "state of another step": lambda p: shutil.copy(p.parent / "step-1" / STATE, p / STATE),
    "manifest of another step": lambda p: shutil.copy(p.parent / "step-1" / MANIFEST, p / MANIFEST),
    "folder of another step": lambda p: (shutil.rmtree(p), shutil.copytree(p.parent / "step-1", p)),
    "manifest is a list": lambda p: (p / MANIFEST).write_text("[]"),
    "manifest is deep": lambda p: (p / MANIFEST).write_text("[" * 100_000),
    "manifest is not text": lambda p: (p / MANIFEST).write_bytes(b"\xff\xfe"),
    "manifest spaced differently": lambda p: (p / MANIFEST).write_text(
        json.dumps(json.loads((p / MANIFEST).read_text()))
    ),
    "everything gone": lambda p: [f.unlink() for f in p.iterdir()],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_of_whole_files_is_detected(tmp_path, name):
    save_step(tmp_path, 1)
    path = save_step(tmp_path, 2)
    DAMAGE[name](path)
    with pytest.raises(ValueError):
        load(path)
    assert latest(tmp_path) == tmp_path / "step-1"


def test_another_format_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    path = save_step(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 2; this version reads 1"):
        load(path)


# ---- crash points ----


class PartialFile:
    """A file whose write is one more point at which the disk can fail, with half of the bytes on it."""

    def __init__(self, file, point):
        self._file, self._point = file, point

    def write(self, data):
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._point("write")
        return self._file.write(data[len(data) // 2 :])

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


class Faults:
    """Counts the calls by which a save touches the disk, and fails the chosen ones."""

    def __init__(self, monkeypatch, fail=lambda number: None):
        self.names, self.fail = [], fail
        for name in ("open", "mkdir", "fsync", "rename", "replace", "chmod", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))
        monkeypatch.setattr(groundup.files, "open", self._open, raising=False)
        monkeypatch.setattr(groundup.tensorfile, "save_file", self._save_file)

    def _point(self, name):
        self.names.append(name)
        self.fail(len(self.names) - 1)

    def _wrap(self, name, function):
        def call(*args, **kwargs):
            self._point(name)
            return function(*args, **kwargs)

        return call

    def _open(self, path, mode="r", *args, **kwargs):
        file = io.open(path, mode, *args, **kwargs)  # noqa: SIM115, UP020
        return PartialFile(file, self._point) if "w" in mode else file

    def _save_file(self, tensors, path, metadata):
        with open(path, "wb") as f:
            f.write(b"partial")
        self._point("save_file")
        return SAVE_FILE(tensors, path, metadata)


SAVE_FILE = groundup.tensorfile.save_file


def second_save(folder):
    save_step(folder, 2, keep=1)


def count_points(folder):
    save_step(folder, 1)
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        second_save(folder)
    assert {"open", "fsync", "rename", "write", "save_file", "unlink", "rmdir"} <= set(faults.names)
    return len(faults.names)


def assert_old_or_new_and_usable(folder):
    path = latest(folder)
    assert path is not None and path.name in ("step-1", "step-2")
    step = int(path.name[-1])
    assert torch.equal(load(path).tensors["model.embed.weight"], torch.full((3, 4), float(step)))
    save_step(folder, 3, keep=1)
    assert os.listdir(folder) == ["step-3"]


@pytest.mark.parametrize(("code", "lasting"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_an_error_at_every_call_of_a_save_leaves_the_old_or_the_new(tmp_path, code, lasting):
    points = count_points(tmp_path / "count")
    for point in range(points):
        folder = tmp_path / str(point)
        save_step(folder, 1)

        def fail(number, point=point):
            if number == point or (lasting and number > point):
                raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, fail)
            try:
                second_save(folder)
            except OSError as error:
                assert error.errno == code
        assert_old_or_new_and_usable(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_every_call_of_a_save_leaves_the_old_or_the_new(tmp_path):
    points = count_points(tmp_path / "count")
    killed = 0
    for point in range(points):
        folder = tmp_path / str(point)
        save_step(folder, 1)
        pid = os.fork()
        if pid == 0:
            with pytest.MonkeyPatch.context() as patch:
                Faults(patch, lambda n, point=point: os.kill(os.getpid(), signal.SIGKILL) if n == point else None)
                second_save(folder)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        assert_old_or_new_and_usable(folder)
    assert killed == points
