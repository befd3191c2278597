"""Kernels as object code: compiled by Numba once, kept on disk, loaded again without Numba.

A *unit* is a module of this package with `ENTRIES`: the names of the kernels that are called from outside. They take
and return int64, first of all the address of a context (see context.py). Compiling takes seconds, so the machine code
goes to a file of the user's cache. Its name is a hash of everything it depends on (its sources, the versions of Numba
and LLVM, the processor), so it is never stale; its content is checked by SHA-256, because it is going to run. Loading
it takes about 30 ms, and needs neither Numba nor pickle.
"""

import ctypes
import hashlib
import importlib.util
import logging
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from groundup.environ import cache_directory
from groundup.files import write_atomic
from groundup.native.processor import feature_list, processor_name, target_machine

log = logging.getLogger(__name__)

_HASH_BYTES = 32
_HAS_LOCK = getattr(sys, "_is_gil_enabled", lambda: True)()
_IMPORT = re.compile(
    rf"^[ \t]*from {re.escape(str(__package__))}(?:\.(\w+) import| import \(([\w\s,]+)\)| import ([\w ,]+)$)",
    re.MULTILINE,
)
_ENTRIES, _NAME = re.compile(r"^ENTRIES = \(([^)]*)\)", re.MULTILINE), re.compile(r'"(\w+)"')
_PACKAGE = Path(__file__).parent
_GENERATOR = _PACKAGE.parents[1] / "native" / "processor.py"  # with which options code is made
_loaded: list[Any] = []  # engines own the memory that the code is in


def prepare(*units: str) -> None:
    """Load units, compiling at the same time those that have to be."""
    for unit in units:
        _version(unit)
    with ThreadPoolExecutor(len(units)) as pool:
        list(pool.map(addresses, units))


@cache
def addresses(unit: str) -> Mapping[str, int]:
    """Entry -> address of its machine code, from the cache or compiled now.

    ImportError where there is no Numba, or where it fails.
    """
    _refuse_newer_sources()
    path = cache_directory() / "kernels" / f"{unit}-{_version(unit)}.o"
    code = _read(path)
    if code is None:
        with _alone(path):
            code = _read(path)  # another process may have made it meanwhile
            if code is None:
                code = _compile(unit)
                _keep(path, code)
    return _load(code, _entries(unit))


def entry(unit: str, name: str) -> Any:
    """A kernel as a Python function of a context's address. It runs without the interpreter's lock."""
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(addresses(unit)[name])


def python_entry(unit: str, name: str, *takes: Any) -> Any:
    """A kernel that makes a Python object, as a function of a context's address and more. It keeps the lock."""
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_int64, *takes)(addresses(unit)[name])


class _MethodDefinition(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = [  # noqa: RUF012 ctypes reads it
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


class Address(int):
    """The address of memory as an int object, and what owns that memory, which lives as long."""

    owner: Any

    @classmethod
    def of(cls, address: int, owner: Any) -> "Address":
        """The address of something in memory of `owner`."""
        made = cls(address)
        made.owner = owner
        return made


def python_function(name: str, returns: Any, *takes: Any) -> Any:
    """A function of CPython's interface, with types of its own for its arguments."""
    return ctypes.PYFUNCTYPE(returns, *takes)((name, ctypes.pythonapi))


def method(unit: str, name: str, address: Address) -> Any:
    """A kernel that takes two Python objects, an address and an argument, as a function of the argument.

    Where Python has no lock, a function that says None, which asks for another way.
    """
    if not _HAS_LOCK:
        return lambda argument: None
    new = python_function("PyCFunction_NewEx", ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    return new(ctypes.addressof(_definition(unit, name)), address, None)


@cache  # a definition has to live as long as any method made of it
def _definition(unit: str, name: str) -> _MethodDefinition:
    takes_one_argument = 0x0008  # METH_O
    return _MethodDefinition(name.encode(), addresses(unit)[name], takes_one_argument, None)


def _entries(unit: str) -> tuple[str, ...]:
    """What a unit lists in ENTRIES, without importing it: that would import Numba."""
    source = (_PACKAGE / f"{unit}.py").read_text(encoding="utf-8")
    listed = _ENTRIES.search(source)
    if listed is None:
        raise RuntimeError(f"{unit}.py has no ENTRIES")
    return tuple(_NAME.findall(listed[1]))


def _refuse_newer_sources() -> None:
    """The layout of contexts is in the sources: code of newer ones would not fit what this process has imported."""
    if _newest_source() > _IMPORTED:
        raise RuntimeError(f"{_PACKAGE}: a file changed after this program began; start it again")


def _newest_source() -> float:
    return max(source.stat().st_mtime for source in _PACKAGE.glob("*.py"))


def _sources(module: str) -> set[str]:
    """The modules of this package that a module is made of: itself, and what these import."""
    found, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += _imported((_PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    return found


def _imported(source: str) -> list[str]:
    """The modules of this package that a source imports. (Parsing it would take longer than encoding 10 MB.)"""
    names = []
    for module, *lists in _IMPORT.findall(source):
        names += [module] if module else [part.split()[0] for part in "".join(lists).split(",") if part.strip()]
    return names


@cache
def _version(unit: str) -> str:
    """Everything that the machine code depends on, as 16 hexadecimal digits."""
    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    for name in sorted({*_sources(unit), *_sources("compiling")}):
        digest.update(name.encode() + b"\0" + (_PACKAGE / f"{name}.py").read_bytes())
    digest.update(_GENERATOR.read_bytes())
    processor = f"{processor_name()} {feature_list()}"
    digest.update("\0".join([unit, processor, llvm.get_process_triple()]).encode())
    digest.update(_version_file("numba") + b"\0" + _version_file("llvmlite"))
    return digest.hexdigest()[:16]


def _version_file(package: str) -> bytes:
    """What says the version of a package, without importing it. ImportError where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed; pip install {package}")
    try:
        return Path(spec.origin).with_name("_version.py").read_bytes()
    except OSError:  # another way of packing it
        return Path(spec.origin).read_bytes()


def _read(path: Path) -> bytes | None:
    """The code in a file of the cache; None when there is none, or not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    seal, code = content[:_HASH_BYTES], content[_HASH_BYTES:]
    return code if hashlib.sha256(code).digest() == seal else None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time, where the system has locks for that; elsewhere two may compile the same."""
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open(path.with_suffix(".lock"), "wb")  # noqa: SIM115 closed below
    except (ImportError, OSError):
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _keep(path: Path, code: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, hashlib.sha256(code).digest() + code)
    except OSError as error:
        log.warning("%s: cannot keep compiled code there (%s); it will be compiled anew each time", path.parent, error)


def _compile(unit: str) -> bytes:
    """Compile in a process of its own: Numba then takes no memory and no time to import in this one."""
    log.warning("compiling %s for this processor, once; this takes some seconds", unit.replace("_", " "))
    program = "import sys; sys.path[:0] = sys.argv[2:]; from groundup.tokenizer.fast.compiling import main; main()"
    command = [sys.executable, "-c", program, unit, *sys.path]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        message = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise ImportError(f"compiling {unit} failed: {' '.join(message)}; see `groundup doctor`")
    return done.stdout


def _load(code: bytes, names: tuple[str, ...]) -> dict[str, int]:
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _loaded.append(engine)
    return {name: engine.get_function_address(name) for name in names}


_IMPORTED = _newest_source()
