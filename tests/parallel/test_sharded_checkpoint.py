"""Checkpoints of many ranks: what is loaded under any layout has the bits of what was saved under any other."""

import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading

import pytest
import torch
import torch.distributed as dist
from torch import nn

from groundup.files import sealed
from groundup.optim import SGD, AdamW
from groundup.parallel import checkpoint_index, save_attempt, stored_parts
from groundup.parallel.pieces import Parts
from groundup.parallel.sharded_checkpoint import load_sharded, read_whole
from groundup.parallel.sharded_saving import ShardedSaver, latest_sharded
from groundup.parallel.stored_parts import StoredParts
from groundup.step_folders import step_folders
from tests.distributed import run_ranks
from tests.thorough import times

STATE = {"loader": {"samples": 12}, "rng": [1, 2], "text": "ü", "none": None}


class Small(nn.Module):
    """Shapes and types that are easily forgotten, and a tied weight."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 9)
        self.short = nn.Parameter(torch.randn(5).to(torch.bfloat16))
        self.scalar = nn.Parameter(torch.randn(()))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.frozen = nn.Parameter(torch.randn(3, dtype=torch.float64), requires_grad=False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("counts", torch.arange(4) + seed)


def stepped(model, seed=0):
    """An AdamW of the model with states as after training."""
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=False)
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    optimizer.step()
    return optimizer


def bits(model, optimizer):
    """Every tensor of both, by name, as they are in a checkpoint."""
    parts = Parts.of_modules([model], optimizer)
    states = {f"optimizer.{key}.{name}": piece.tensor for name, key, piece in parts.states()}
    return {f"model.{name}": piece.tensor.clone() for name, piece in parts.weights.items()} | {
        name: tensor.clone() for name, tensor in states.items()
    }


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def save_one(folder, step=3, seed=0, **options):
    model = Small(seed)
    optimizer = stepped(model)
    with ShardedSaver(folder, **options) as saver:
        saver.save(step, Parts.of_modules([model], optimizer), STATE)
        path = saver.finish()
    assert path is not None
    return path, bits(model, optimizer)


def other():
    model = Small(seed=5)
    return model, stepped(model)


def test_round_trip_on_one_process(tmp_path):
    path, saved = save_one(tmp_path / "run")
    assert path == tmp_path / "run" / "step-3" == latest_sharded(tmp_path / "run")
    model, optimizer = other()
    assert not same(bits(model, optimizer), saved)
    assert load_sharded(path, Parts.of_modules([model], optimizer)) == STATE
    assert same(bits(model, optimizer), saved)
    assert same(read_whole(path, ""), saved)
    assert set(read_whole(path)) == {name.removeprefix("model.") for name in saved if name.startswith("model.")}
    assert sorted(os.listdir(tmp_path / "run")) == ["step-3"]
    assert sorted(os.listdir(path)) == ["index.json", "rank-00000-00001.safetensors"]


def test_weights_without_an_optimizer_and_states_that_never_were(tmp_path):
    path, saved = save_one(tmp_path)
    model = Small(1)
    load_sharded(path, Parts.of_modules([model]))
    assert same(bits(model, None), {name: t for name, t in saved.items() if name.startswith("model.")})
    with ShardedSaver(tmp_path) as saver:
        saver.save(4, Parts.of_modules([model], AdamW(model.parameters(), lr=1e-2)))
    model, optimizer = other()
    assert load_sharded(tmp_path / "step-4", Parts.of_modules([model], optimizer)) == {}
    assert list(Parts.of_modules([model], optimizer).states()) == []


def test_many_files_and_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(save_attempt, "SHARD_BYTES", 100)
    for module in (checkpoint_index, stored_parts):
        monkeypatch.setattr(module, "CHUNK_BYTES", 16)
    path, saved = save_one(tmp_path)
    assert len(list(path.glob("*.safetensors"))) > 5
    assert same(read_whole(path, ""), saved)
    index = checkpoint_index.read_index(path)
    assert len(index.tensors["model.up.weight"].parts[0].crc32) == -(-6 * 9 * 4 // 16)


# ---- another model ----


def refused(path, model, optimizer, message):
    """Loading raises, and changes nothing."""
    before = bits(model, optimizer)
    with pytest.raises(ValueError, match=message):
        load_sharded(path, Parts.of_modules([model], optimizer))
    assert same(bits(model, optimizer), before)


def test_a_checkpoint_of_another_model_is_refused_with_names(tmp_path):
    path, _ = save_one(tmp_path)
    model, optimizer = other()
    model.register_parameter("more", nn.Parameter(torch.zeros(2)))
    refused(path, model, optimizer, "missing model.more")
    model, optimizer = other()
    del model.frozen
    refused(path, model, optimizer, "unknown to the model: model.frozen")
    model, optimizer = other()
    model.frozen = nn.Parameter(torch.zeros(4, dtype=torch.float64), requires_grad=False)
    refused(path, model, optimizer, r"model.frozen is float64 of shape \(3,\); expected float64 of shape \(4,\)")
    model, optimizer = other()
    model.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    refused(path, model, optimizer, "model.frozen is float64 .* expected float32")


def test_the_states_of_another_optimizer_are_refused(tmp_path):
    path, _ = save_one(tmp_path)
    model = Small()
    refused(path, model, SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), "SGD has")
    half = AdamW([p for name, p in model.named_parameters() if name.startswith("up")], lr=0.1)
    refused(path, model, half, "unknown to the model: optimizer")
    with pytest.raises(ValueError, match="not the model's"):
        Parts.of_modules([model], AdamW([nn.Parameter(torch.ones(2))], lr=1.0)).stepped().__next__()


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    save_one(tmp_path, 1)
    model = Small()
    model.up.weight.data[3, 2] = float("nan")
    saver = ShardedSaver(tmp_path)
    saver.save(2, Parts.of_modules([model]))
    with pytest.raises(ValueError, match=r"model.up.weight is not finite"):
        saver.finish()
    assert os.listdir(tmp_path) == ["step-1"] and saver.finish() is None


# ---- damage ----


@pytest.mark.parametrize("flips", [60, pytest.param(times(600), marks=pytest.mark.slow)])
def test_every_flipped_bit_is_detected(tmp_path, flips):
    path, _ = save_one(tmp_path)
    rng = random.Random(0)
    files = sorted(path.iterdir())
    for _ in range(flips):
        file = rng.choice(files)
        good = file.read_bytes()
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        with pytest.raises(ValueError, match=file.name):
            StoredParts(path).verify()
        file.write_bytes(good)
    StoredParts(path).verify()


def test_a_damaged_tensor_is_named_and_nothing_changes(tmp_path):
    path, saved = save_one(tmp_path)
    file = path / "rank-00000-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[bytes(data).index(saved["model.up.bias"].numpy().tobytes())] ^= 1
    file.write_bytes(data)
    refused(path, *other(), r"in tensor model\.up\.bias")
    assert torch.equal(StoredParts(path).whole("model.up.weight"), saved["model.up.weight"])  # it is whole


FILE = "rank-00000-00001.safetensors"
DAMAGE = {
    "truncated": lambda p: (p / FILE).write_bytes((p / FILE).read_bytes()[:-1]),
    "grown": lambda p: (p / FILE).write_bytes((p / FILE).read_bytes() + b"x"),
    "empty": lambda p: (p / FILE).write_bytes(b""),
    "missing": lambda p: (p / FILE).unlink(),
    "doubled": lambda p: shutil.copy(p / FILE, p / "rank-00001-00001.safetensors"),
    "renamed": lambda p: (p / FILE).rename(p / "rank-00001-00001.safetensors"),
    "a link": lambda p: ((p / FILE).rename(p.parent / "x"), (p / FILE).symlink_to(p.parent / "x")),
    "a folder": lambda p: ((p / FILE).unlink(), (p / FILE).mkdir()),
    "of another step": lambda p: shutil.copy(p.parent / "step-1" / FILE, p / FILE),
    "no index": lambda p: (p / "index.json").unlink(),
    "index of another step": lambda p: shutil.copy(p.parent / "step-1" / "index.json", p / "index.json"),
    "index and file swapped": lambda p: (
        (p / FILE).rename(p / "x"),
        (p / "index.json").rename(p / FILE),
        (p / "x").rename(p / "index.json"),
    ),
    "index is a list": lambda p: (p / "index.json").write_text("[]"),
    "index is deep": lambda p: (p / "index.json").write_text("[" * 100_000),
    "index is not text": lambda p: (p / "index.json").write_bytes(b"\xff\xfe"),
    "index has a key twice": lambda p: (p / "index.json").write_text(
        (p / "index.json").read_text().replace('"step": 2', '"step": 1, "step": 2')
    ),
    "folder of another step": lambda p: (shutil.rmtree(p), shutil.copytree(p.parent / "step-1", p)),
    "everything gone": lambda p: [f.unlink() for f in p.iterdir()],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_of_whole_files_is_detected(tmp_path, name):
    save_one(tmp_path, 1, seed=1)
    path, _ = save_one(tmp_path, 2)
    DAMAGE[name](path)
    with pytest.raises((ValueError, OSError)):
        read_whole(path)
    refused(path, *other(), "step-2")


def test_latest_passes_over_what_is_damaged(tmp_path, caplog):
    assert latest_sharded(tmp_path / "absent") is None
    for step in (1, 9, 10):
        save_one(tmp_path, step)
    (tmp_path / "step-10" / FILE).unlink()
    with caplog.at_level(logging.WARNING):
        assert latest_sharded(tmp_path) == tmp_path / "step-9"
    assert "step-10" in caplog.text and "passed over" in caplog.text


# ---- hostile folders: the hashes are right, what they are of is not ----


def part(body, name="model.up.weight"):
    return body["tensors"][name]["parts"][0]


def two_parts(body, first, second):
    """up.weight (9, 6) as two boxes, the second one claimed to be in a file that the folder has."""
    own = part(body)
    body["files"]["rank-00001-00001.safetensors"] = dict(body["files"][FILE])
    body["tensors"]["model.up.weight"]["parts"] = [
        {**own, "box": first, "run": None},
        {**own, "box": second, "run": None, "file": "rank-00001-00001.safetensors"},
    ]


def huge(body, *shape):
    body["tensors"]["model.up.weight"]["shape"] = list(shape)
    part(body)["box"] = [[0, size] for size in shape]


HOSTILE = {
    "path": (lambda b: part(b).update(file="../x"), "not among the index's files"),
    "path in files": (lambda b: b["files"].update({"../x.safetensors": b["files"][FILE]}), "file name '../x"),
    "absolute path": (lambda b: b["files"].update({"/etc/passwd": b["files"][FILE]}), "file name '/etc"),
    "overlap": (lambda b: two_parts(b, [[0, 6], [0, 6]], [[4, 9], [0, 6]]), "overlap"),
    "hole": (lambda b: two_parts(b, [[0, 4], [0, 6]], [[5, 9], [0, 6]]), "a part is missing"),
    "same twice": (lambda b: two_parts(b, [[0, 9], [0, 6]], [[0, 9], [0, 6]]), "overlap"),
    "outside": (lambda b: part(b).update(box=[[0, 9], [1, 7]]), "not inside"),
    "negative": (lambda b: part(b).update(box=[[-1, 8], [0, 6]]), "box cannot be"),
    "backwards": (lambda b: part(b).update(box=[[9, 0], [0, 6]]), "box cannot be"),
    "run outside": (lambda b: part(b).update(run=[10, 64]), "elements"),
    "one axis": (lambda b: part(b).update(box=[[0, 54]]), "not inside"),
    "other shape": (lambda b: huge(b, 6, 9), "float32 of shape|not those that the index lists"),
    "huge": (lambda b: huge(b, 2**40, 2**10), "checksums|is said to hold"),
    "too huge": (lambda b: huge(b, 2**61, 2**61), "shape cannot be"),
    "larger than its file": (lambda b: huge(b, 2**18, 1), "is said to hold|checksums"),
    "many axes": (lambda b: huge(b, *[1] * 65), "shape cannot be"),
    "dtype": (lambda b: b["tensors"]["model.up.weight"].update(dtype="int32"), "not those that the index lists"),
    "smaller dtype": (lambda b: b["tensors"]["model.up.weight"].update(dtype="bfloat16"), "not those that the index"),
    "no dtype": (lambda b: b["tensors"]["model.up.weight"].update(dtype="complex1024"), "dtype cannot be"),
    "in one file twice": (lambda b: b["tensors"]["model.up.weight"]["parts"].append(part(b)), "in one file"),
    "renamed": (lambda b: b["tensors"].update({"model.x": b["tensors"].pop("model.up.weight")}), "missing|not those"),
    "no checksums": (lambda b: part(b).update(crc32=[]), "checksums"),
    "checksums of others": (lambda b: part(b).update(crc32=[1]), "changed since it was saved"),
    "text for a number": (lambda b: part(b).update(box=[["0", 9], [0, 6]]), "box cannot be"),
    "true for a number": (lambda b: b.update(step=True), "step cannot be"),
    "a key more": (lambda b: part(b).update(key="x"), "expected an object of"),
    "parts are a number": (lambda b: b["tensors"]["model.up.weight"].update(parts=7), "parts cannot be"),
    "file bytes": (lambda b: b["files"][FILE].update(bytes=10**15), "truncated or replaced"),
    "another format": (lambda b: b.update(format=99), "format 99; this version reads 1"),
    "no tensors": (lambda b: b.pop("tensors"), "expected an object of"),
    "no file": (lambda b: b.update(files={}), "not among the index's files"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_index_is_refused_before_it_takes_memory(tmp_path, name):
    path, _ = save_one(tmp_path)
    change, message = HOSTILE[name]
    body = json.loads((path / "index.json").read_bytes())
    del body["sha256"]
    change(body)
    if "rank-00001-00001.safetensors" in body.get("files", {}):
        shutil.copy(path / FILE, path / "rank-00001-00001.safetensors")
    (path / "index.json").write_bytes(sealed(body, compact=True))
    refused(path, *other(), message)


# ---- crashes and full disks ----

POINTS = ("open", "mkdir", "fsync", "rename", "replace", "chmod", "unlink", "rmdir")


def at_every_call(monkeypatch, do):
    """Call `do(number)` before each call by which a save touches the disk."""
    count = iter(range(10**6))

    def wrapped(function):
        def call(*args, **kwargs):
            do(next(count))
            return function(*args, **kwargs)

        return call

    for name in POINTS:
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))


def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path, monkeypatch):
    run, copies = tmp_path / "run", tmp_path / "copies"
    _, old = save_one(run, 1, seed=1)
    copying = threading.local()

    def remember(number):
        if not getattr(copying, "now", False):
            copying.now = True
            shutil.copytree(run, copies / str(number), symlinks=True)
            copying.now = False

    with monkeypatch.context() as patched:
        at_every_call(patched, remember)
        path, new = save_one(run, 2, keep=1)
    found = []
    for copy in sorted(copies.iterdir(), key=lambda p: int(p.name)):
        latest = latest_sharded(copy)
        found.append(latest.name)
        assert same(read_whole(latest, ""), old if latest.name == "step-1" else new), copy
    assert len(found) > 10 and set(found) == {"step-1", "step-2"} and found == sorted(found)
    for copy in copies.iterdir():  # and the next save cleans up
        save_one(copy, 3, keep=1)
        assert os.listdir(copy) == ["step-3"]


def test_a_full_disk_at_any_moment_is_an_error_that_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    run = tmp_path / "run"
    save_one(run, 1)
    for fault in range(10**3):

        def fail(number, fault=fault):
            if number == fault:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(run, tmp_path / "copy")
        model = Small()
        saver = ShardedSaver(tmp_path / "copy")
        with monkeypatch.context() as patched:
            at_every_call(patched, fail)
            try:
                saver.save(2, Parts.of_modules([model]), {})
                saver.finish()
            except OSError as error:
                assert "No space left" in str(error) and "Traceback" in str(error)
            else:
                if latest_sharded(tmp_path / "copy").name == "step-2" and fault > 30:
                    break
        assert latest_sharded(tmp_path / "copy") is not None
        saver.save(3, Parts.of_modules([model]))  # the same saver, later
        assert saver.finish().name == "step-3"
        assert {p.name for p in (tmp_path / "copy").iterdir()} <= {"step-1", "step-2", "step-3"}
    else:
        raise AssertionError("no save got through")


# ---- in the background ----


def held(monkeypatch):
    """Writing waits until the event is set."""
    event, write = threading.Event(), save_attempt.write_tensors

    def later(*args):
        assert event.wait(30)
        return write(*args)

    monkeypatch.setattr(save_attempt, "write_tensors", later)
    return event


def test_what_is_saved_is_of_the_moment_of_the_call(tmp_path, monkeypatch):
    event = held(monkeypatch)
    model = Small()
    optimizer = stepped(model)
    saved = bits(model, optimizer)
    saver = ShardedSaver(tmp_path)
    state = {"list": [1]}
    saver.save(1, Parts.of_modules([model], optimizer), state)
    state["list"].append(2)
    for p in model.parameters():
        p.data.zero_()
    optimizer.step()
    model.counts.zero_()
    assert step_folders(tmp_path) == [] and latest_sharded(tmp_path) is None
    event.set()
    assert saver.finish() == tmp_path / "step-1"
    assert same(read_whole(tmp_path / "step-1", ""), saved)
    assert StoredParts(tmp_path / "step-1").index.state == {"list": [1]}


def test_an_error_in_the_background_comes_with_its_traceback_at_the_next_call(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "the disk is on fire")

    parts = Parts.of_modules([Small()])
    saver = ShardedSaver(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(save_attempt, "write_tensors", broken)
        saver.save(1, parts)
        with pytest.raises(OSError, match="(?s)on fire|in broken"):
            saver.save(2, parts)
        saver.save(3, parts)
        with pytest.raises(OSError, match="(?s)Traceback.*in broken.*on fire"):
            saver.finish()
        with pytest.raises(OSError, match="on fire"), ShardedSaver(tmp_path) as other:
            other.save(4, parts)
        with pytest.raises(KeyError, match="mine"), ShardedSaver(tmp_path) as other:  # not hidden by it
            other.save(5, parts)
            raise KeyError("mine")
    assert os.listdir(tmp_path) == []
    saver.save(6, parts)
    assert saver.finish() == tmp_path / "step-6"


def test_many_saves_in_a_row_and_what_is_kept(tmp_path):
    model = Small()
    with ShardedSaver(tmp_path, keep=2) as saver:
        for step in range(20):
            model.up.bias.data.fill_(step)
            saver.save(step // 2, Parts.of_modules([model]))
            model.up.bias.data.fill_(-1)
    assert sorted(os.listdir(tmp_path)) == ["step-9", "step-9.1"]
    for name, value in (("step-9", 18.0), ("step-9.1", 19.0)):
        assert (read_whole(tmp_path / name)["up.bias"] == value).all()
    with pytest.raises(ValueError, match="keep=0"):
        ShardedSaver(tmp_path, keep=0)


def test_a_state_that_json_cannot_say_is_refused(tmp_path):
    saver = ShardedSaver(tmp_path)
    for state in ({"x": float("nan")}, {"x": object()}, {"x": {1, 2}}):
        with pytest.raises(ValueError, match="step 1 cannot be saved"):
            saver.save(1, Parts.of_modules([Small()]), state)
    assert os.listdir(tmp_path) == []


PROGRAM = """
import sys, time, torch
from groundup.parallel import save_attempt
from groundup.parallel.pieces import Parts
from groundup.parallel.sharded_saving import ShardedSaver

write = save_attempt.write_tensors
save_attempt.write_tensors = lambda *args: (time.sleep(0.5), write(*args))
model = torch.nn.Linear(3, 3)
saver = ShardedSaver(sys.argv[1])
saver.save(1, Parts.of_modules([model]))
saver.save(2, Parts.of_modules([model]))
print("saving", flush=True)
if sys.argv[2] == "exit":
    sys.exit(3)
time.sleep(60)
"""


@pytest.mark.slow
def test_leaving_the_program_waits_and_a_signal_leaves_the_checkpoint_before(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "a"), "exit"], timeout=120)
    assert done.returncode == 3 and latest_sharded(tmp_path / "a").name == "step-2"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "b"), "stay"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"saving\n"
        process.terminate()
        assert process.wait(60) == -15
    assert latest_sharded(tmp_path / "b").name in ("step-1", "step-2")
    save_one(tmp_path / "b", 3)
    assert not [name for name in os.listdir(tmp_path / "b") if name.startswith(".")]


# ---- several ranks ----


def on_two_ranks(rank, size, folder):
    """Errors of one rank are all ranks' errors, and nobody waits for anybody."""
    model = Small()
    optimizer = stepped(model)
    parts = Parts.of_modules([model], optimizer)
    messages = []

    def expect(kind, function):
        try:
            function()
        except kind as error:
            messages.append(str(error))
        else:
            messages.append(None)

    saver = ShardedSaver(folder, timeout=20)
    saver.save(1, parts, STATE)
    saver.finish()
    written = sorted(os.listdir(saver.directory / "step-1"))
    expect(ValueError, lambda: saver.save(2, parts, {"rank": rank}))
    expect(ValueError, lambda: saver.save(2 + rank, parts))
    expect(ValueError, lambda: saver.save(2, parts, {"x": float("nan")} if rank else {}))
    write = save_attempt.write_tensors
    if rank == 1:
        save_attempt.write_tensors = lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full here"))
    saver.save(2, parts)
    expect(OSError, saver.finish)
    saver.save(2, parts)
    expect(OSError, lambda: saver.save(3, parts))
    save_attempt.write_tensors = write
    saver.save(4, parts)
    saver.finish()
    dist.barrier()
    names = sorted(os.listdir(folder))
    dist.barrier()
    path = saver.directory / "step-4"
    if rank == 0:  # what rank 0 reads is damaged, and rank 1 is told
        copy = shutil.copytree(path, saver.directory / "copy" / "step-4")
        file = copy / "rank-00001-00001.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    dist.barrier()
    before = bits(model, optimizer)
    good = saver.directory / ("copy" if rank == 0 else ".") / "step-4"
    expect(ValueError, lambda: load_sharded(good, parts))
    unchanged = same(bits(model, optimizer), before)
    return messages, names, written, unchanged and load_sharded(path, parts) == {}


def test_what_happens_on_one_rank_is_known_to_all(tmp_path):
    (first, names, written, good), (second, *others) = run_ranks(on_two_ranks, 2, str(tmp_path))
    assert first == second and [names, written, good] == others and good
    state, step, nan, full, again, damaged = first
    assert "rank 1 has another state than rank 0" in state and "rank 1 has another step than rank 0" in step
    assert "rank 1 failed" in nan and "step 2 cannot be saved" in nan
    assert "rank 1 failed" in full and "full here" in full and "Traceback" in full and "full here" in again
    assert "rank 0 failed" in damaged and "truncated" in damaged
    assert names == ["step-1", "step-4"]
    assert written == ["index.json", "rank-00000-00001.safetensors", "rank-00001-00001.safetensors"]
    sizes = [(tmp_path / "step-1" / name).stat().st_size for name in written[1:]]
    assert max(sizes) < 1.5 * min(sizes)  # what both have is divided between them
