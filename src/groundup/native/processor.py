"""The processor that code is made for: this machine's, or a plainer one that `GROUNDUP_PORTABLE` asks for."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from groundup.environ import env


def processor_name() -> str:
    """What LLVM calls it."""
    import llvmlite.binding as llvm

    return "" if env("GROUNDUP_PORTABLE") else llvm.get_host_cpu_name()


@cache
def processor_features() -> Mapping[str, bool]:
    """Instruction sets that may be used. None but the architecture's basic ones with GROUNDUP_PORTABLE=1: the code
    for other processors is then tested on this one."""
    import llvmlite.binding as llvm

    return {} if env("GROUNDUP_PORTABLE") else llvm.get_host_cpu_features()


def feature_list() -> str:
    """The features as LLVM wants them to be written."""
    return ",".join(("+" if has else "-") + name for name, has in sorted(processor_features().items()))


def target_machine() -> Any:
    """LLVM's generator of code for this machine's processor. Each user needs one of its own."""
    import llvmlite.binding as llvm

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
