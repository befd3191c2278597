"""Object code on disk: made once, noticed when damaged or out of date."""

import ctypes
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from groundup.tokenizer import Tokenizer
from groundup.tokenizer.fast import objects

UNIT, ENTRY = "decode", "decoded_size"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a process that has loaded nothing."""
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path))
    objects.addresses.cache_clear()
    yield tmp_path / "kernels"
    objects.addresses.cache_clear()


def works() -> bool:
    fields = (ctypes.c_int64 * 10)()
    return objects.entry(UNIT, ENTRY)(ctypes.addressof(fields)) == 0  # no ids, no bytes


def test_a_unit_is_compiled_once(cache, monkeypatch, caplog):
    assert works()
    assert "compiling decode for this processor, once" in caplog.text
    objects.addresses.cache_clear()
    monkeypatch.setattr(objects, "_compile", lambda unit: pytest.fail("compiled again"))
    assert works()
    assert [path.suffix for path in sorted(cache.iterdir())] == [".lock", ".o"]


def test_damaged_code_never_runs(cache):
    assert works()
    (path,) = cache.glob("*.o")
    whole = path.read_bytes()
    for damaged in (b"", b"short", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        objects.addresses.cache_clear()
        assert works()
        assert path.read_bytes()[:32] == whole[:32]


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path / "file"))
    objects.addresses.cache_clear()
    assert works()
    assert "cannot keep compiled code" in caplog.text
    objects.addresses.cache_clear()


def test_the_name_changes_with_every_source_that_a_unit_is_made_of(monkeypatch, tmp_path):
    assert objects._sources("texts") >= {"texts", "machine", "context", "encode_context"}
    assert "learn" not in objects._sources("encode")
    for source in objects._PACKAGE.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / "processor.py").write_bytes(objects._GENERATOR.read_bytes())
    monkeypatch.setattr(objects, "_PACKAGE", tmp_path)
    monkeypatch.setattr(objects, "_GENERATOR", tmp_path / "processor.py")
    names = set()
    for changed in ("", "machine", "decode", "compiling", "decode_context", "processor"):
        if changed:
            with open(tmp_path / f"{changed}.py", "a") as file:
                file.write("\n# changed\n")
        objects._version.cache_clear()
        names.add(objects._version(UNIT))
    objects._version.cache_clear()
    assert len(names) == 6


def test_a_failing_compiler_is_named(cache, monkeypatch):
    monkeypatch.setattr(objects.sys, "executable", "/bin/false")
    with pytest.raises(ImportError, match="compiling decode failed"):
        works()


def test_without_numba_text_is_encoded_all_the_same(cache, monkeypatch, caplog):
    monkeypatch.setattr(objects.importlib.util, "find_spec", lambda name: None)
    tokenizer = Tokenizer({byte: bytes([byte]) for byte in range(256)} | {256: b"th"}, [(b"t", b"h")])
    assert tokenizer.encode("the \ud800") == [256, 101, 32, 239, 191, 189]
    assert tokenizer.encode_batch(["th", ""]) == [[256], []]
    ids, offsets = tokenizer.encode_ragged(["th", "a"])
    assert (ids.tolist(), offsets.tolist()) == ([256, 97], [0, 1, 2])
    assert tokenizer.decode(ids) == "tha"
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(b"\xffth\x80")) == b"\xffth\x80"
    assert list(tokenizer.encode_iterable(["t", "h"])) == [256]
    assert "numba is not installed" in caplog.text


def test_importing_compiles_and_loads_nothing():
    program = "import sys, groundup.tokenizer; print({m for m in ('numba', 'llvmlite', 'torch') if m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_entries_are_read_from_sources_as_python_reads_them():
    units = [path.stem for path in Path(objects.__file__).parent.glob("*.py") if "\nENTRIES = " in path.read_text()]
    assert "texts" in units and "encode" in units
    for unit in units:
        module = importlib.import_module(f"groundup.tokenizer.fast.{unit}")
        assert objects._entries(unit) == module.ENTRIES
