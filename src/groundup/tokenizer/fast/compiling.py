"""From Numba's kernels to object code; the program of the process that `objects` starts for it."""

import importlib
import sys
from types import ModuleType
from typing import Any

from groundup.native.processor import target_machine


def main() -> None:
    """Write the object code of the unit that is named by the first argument to standard output."""
    unit = importlib.import_module(f"{__package__}.{sys.argv[1]}")
    sys.stdout.buffer.write(_object_code(unit))


def _object_code(unit: ModuleType) -> bytes:
    """The machine code of a unit's entries, each as a plain C function of its own name."""

    linked = None
    for name in unit.ENTRIES:
        module = _c_function(getattr(unit, name), name)
        if linked is None:
            linked = module
        else:
            linked.link_in(module)
    assert linked is not None
    linked.verify()
    return target_machine().emit_object(linked)


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

    builder = llvm.create_pass_builder(target_machine(), llvm.create_pipeline_tuning_options())
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, builder)
