"""Kernels as object code: compiled by Numba once, kept on disk, loaded again without Numba.

A *unit* is a module of this package with `ENTRIES`: the names of the kernels that are called from outside. They take
and return int64, first of all the address of a context (see context.py). Compiling takes seconds, so the machine code
goes to a file of the user's cache. Its name is a hash of everything it depends on (its sources, the versions of Numba
and LLVM, the processor), so it is never stale; its content is checked by SHA-256, because it is going to run. Loading
it takes about 30 ms, and needs neither Numba nor pickle.
"""

import ctypes
import hashlib
import importlib
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from groundup.environ import cache_directory
from groundup.files import write_atomic
from groundup.tokenizer.fast.processor import feature_list, processor_name

log = logging.getLogger(__name__)

_HASH_BYTES = 32
_PACKAGE = Path(__file__).parent
_loaded: list[Any] = []  # engines own the memory that the code is in


@cache
def addresses(unit: str) -> Mapping[str, int]:
    """Entry -> address of its machine code, from the cache or compiled now. RuntimeError without a compiler."""
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


def _entries(unit: str) -> tuple[str, ...]:
    """What a unit lists in ENTRIES, without importing it: that would import Numba."""
    for line in (_PACKAGE / f"{unit}.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("ENTRIES = "):
            return tuple(line.removeprefix("ENTRIES = ").strip("()").replace('"', "").rstrip(",").split(", "))
    raise RuntimeError(f"{unit}.py has no ENTRIES")


def _sources(module: str) -> set[str]:
    """The modules of this package that a module is made of: itself, and what these import."""
    found, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            text = (_PACKAGE / f"{name}.py").read_text(encoding="utf-8")
            pending += re.findall(r"^from groundup\.tokenizer\.fast\.(\w+) import", text, re.MULTILINE)
    return found


@cache
def _version(unit: str) -> str:
    """Everything that the machine code depends on, as 16 hexadecimal digits."""
    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    for name in sorted({*_sources(unit), "objects"}):
        digest.update(name.encode() + b"\0" + (_PACKAGE / f"{name}.py").read_bytes())
    processor = f"{processor_name()} {feature_list()}"
    versions = [metadata.version("numba"), metadata.version("llvmlite"), llvm.get_process_triple()]
    digest.update("\0".join([unit, processor, *versions]).encode())
    return digest.hexdigest()[:16]


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
    log.warning("compiling %s for this processor, once; this takes some seconds", unit.replace("_", " "))
    started = time.monotonic()
    module = importlib.import_module(f"{__package__}.{unit}")
    code = _object_code(module)
    log.info("compiled %s in %.1f s", unit, time.monotonic() - started)
    return code


def _object_code(unit: ModuleType) -> bytes:
    """The machine code of a unit's entries, each as a plain C function of its own name."""
    import llvmlite.binding as llvm

    linked = None
    for name in unit.ENTRIES:
        module = _c_function(getattr(unit, name), name)
        if linked is None:
            linked = module
        else:
            linked.link_in(module)
    assert linked is not None
    linked.verify()
    return _machine(llvm).emit_object(linked)


def _c_function(dispatcher: Any, name: str) -> Any:
    """The LLVM module of one compiled kernel, with nothing visible but a C function `name`."""
    import llvmlite.binding as llvm
    from numba import types

    signature = (types.int64,) * dispatcher.py_func.__code__.co_argcount
    dispatcher.compile(signature)
    compiled = dispatcher.overloads[signature]
    text = str(compiled.library._final_module)
    kernel = compiled.fndesc.llvm_func_name
    takes = ", ".join(f"i64 %argument{number}" for number in range(len(signature)))
    module = llvm.parse_assembly(f"{text}\n{_BRIDGE.format(name=name, kernel=kernel, takes=takes)}")
    for function in module.functions:
        if not function.is_declaration and function.name != name:
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    _drop_unused(module)
    return module


# Numba's functions take where to put the answer and the exception, and return a status.
_BRIDGE = """
define i64 @{name}({takes}) {{
  %answer = alloca i64
  %exception = alloca ptr
  store i64 0, ptr %answer
  %status = call i32 @{kernel}(ptr %answer, ptr %exception, {takes})
  %value = load i64, ptr %answer
  ret i64 %value
}}
"""


def _drop_unused(module: Any) -> None:
    import llvmlite.binding as llvm

    builder = llvm.create_pass_builder(_machine(llvm), llvm.create_pipeline_tuning_options())
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, builder)


def _machine(llvm: Any) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=processor_name(),
        features=feature_list(),
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )


def _load(code: bytes, names: tuple[str, ...]) -> dict[str, int]:
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(llvm))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _loaded.append(engine)
    return {name: engine.get_function_address(name) for name in names}
