"""What is half-written in the compiler's cache goes, and nothing else does."""

import ctypes
import fcntl
import shutil
import sys
from pathlib import Path

import pytest
import torch

from groundup.train.compiler_cache import is_whole, remove_halves

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cache is looked at on Linux only")

HALVES = {
    "nothing is written": lambda data: b"",
    "not even the header": lambda data: data[:40],
    "no header yet": lambda data: bytes(64) + data[64:],
    "the first half": lambda data: data[: len(data) // 2],
}


@pytest.fixture(scope="module")
def library():
    """One that loads: torch's own, which is loaded already."""
    return Path(torch._C.__file__)


@pytest.fixture
def cache(tmp_path, library):
    """A cache with one library, and an object file of another key."""
    for name in ("ab/cabc.main.so", "xy/cxyz.main.o", "locks/cabc.lock"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(library, path) if "locks" not in name else path.touch()
    return tmp_path


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", HALVES)
def test_a_half_goes_and_is_said(cache, library, how, caplog):
    broken = cache / "ab" / "chalf.main.so"
    broken.write_bytes(HALVES[how](library.read_bytes()))
    assert not is_whole(broken)
    before = files_of(cache)
    assert remove_halves(cache) == [broken] and f"{cache}: removed" in caplog.text and "chalf.main.so" in caplog.text
    assert set(before) - set(files_of(cache)) == {"ab/chalf.main.so"}
    caplog.clear()
    assert remove_halves(cache) == [] and not caplog.text


@pytest.mark.parametrize(("size", "whole"), [(191, False), (192, True), (300, True)])
def test_a_file_goes_as_far_as_its_table_of_sections(tmp_path, size, whole):
    header = b"\x7fELF" + bytes(36) + (64).to_bytes(8, "little") + bytes(10)
    header += (64).to_bytes(2, "little") + (2).to_bytes(2, "little") + bytes(2)
    (tmp_path / "two.o").write_bytes(header + bytes(size - 64))
    assert is_whole(tmp_path / "two.o") == whole


def test_what_loads_is_whole_and_stays(cache):
    assert ctypes.CDLL(str(cache / "ab" / "cabc.main.so"))
    before = files_of(cache)
    assert remove_halves(cache) == [] and files_of(cache) == before


def test_other_files_and_other_folders_are_not_looked_at(cache):
    others = [cache / "ab" / "cabc.main.cpp", cache / "fxgraph" / "half.so", cache / "half.so"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    assert remove_halves(cache) == [] and all(path.exists() for path in others)


def test_what_somebody_writes_now_is_left_to_him(cache):
    broken = cache / "ab" / "cabc.main.so"
    broken.write_bytes(broken.read_bytes()[:100])
    with open(cache / "locks" / "cabc.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert remove_halves(cache) == [] and broken.exists()
    assert remove_halves(cache) == [broken]


def test_a_cache_that_is_not_there_is_empty(tmp_path):
    assert remove_halves(tmp_path / "none") == [] and not (tmp_path / "none").exists()
