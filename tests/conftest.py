"""For every test: runtime shape checks, one thread, fixed seeds, and reasons for what has to be skipped."""

import functools
import gc
import importlib
import importlib.util
import inspect
import itertools
import os
import random
import typing
from pathlib import Path

# One thread, here and in every process that a test starts: sums are then reproducible, and parallel
# pytest workers do not fight over cores. Read when torch is imported, hence before it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from tests.thorough import one_in, times  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent


def _check_unless_compiling(function=None, *, typechecker):
    """`jaxtyping.jaxtyped`, except that torch.compile sees the bare function.

    Dynamo would otherwise trace through the checker, where a fake tensor is no `Tensor` to beartype.
    """
    if function is None:
        return functools.partial(_check_unless_compiling, typechecker=typechecker)
    if function.__module__.startswith("groundup.kernels.triton."):
        return function  # a kernel is its source and its module's names; a wrapper has those of another module
    if inspect.isclass(function) and getattr(function, "_is_protocol", False):
        return typing.runtime_checkable(function)  # else beartype refuses it as an annotation
    if inspect.isclass(function):
        bare = function.__init__
        checked = _jaxtyped(function, typechecker=typechecker)
        if checked.__init__ is not bare:
            checked.__init__ = _bare_when_compiling(bare, checked.__init__)
        return checked
    return _bare_when_compiling(function, _jaxtyped(function, typechecker=typechecker))


CHECKED_CALLS = times(8)  # of each function in each test; behind them
ONE_IN = one_in(32)  # of them is checked, as a check takes longer than most calls
_tests = itertools.count()
_test = next(_tests)


def _bare_when_compiling(bare, checked):
    test, calls = -1, 0

    @functools.wraps(bare)
    def call(*args, **kwargs):
        nonlocal test, calls
        if torch.compiler.is_compiling():
            return bare(*args, **kwargs)
        if test != _test:
            test, calls = _test, 0
        calls += 1
        return (bare if calls > CHECKED_CALLS and calls % ONE_IN else checked)(*args, **kwargs)

    return call


# The import hook decorates each function and dataclass with `jaxtyping.jaxtyped`, looked up by this name.
_jaxtyped = jaxtyping.jaxtyped
jaxtyping.jaxtyped = _check_unless_compiling

# A machine that is borrowed for its GPU may lack these two; the header of the report then says so.
HAS_BEARTYPE, HAS_HYPOTHESIS = (importlib.util.find_spec(name) is not None for name in ("beartype", "hypothesis"))
if HAS_BEARTYPE:
    importlib.import_module("tests.typecheck")
    jaxtyping.install_import_hook("groundup", "tests.typecheck.check")
# Before any test file can import Triton as it is for GPUs.
importlib.import_module("tests.kernels.triton.interpreted").import_kernels()
if HAS_HYPOTHESIS:
    import hypothesis

    hypothesis.settings.register_profile("groundup", deadline=None, derandomize=True, print_blob=False)
    hypothesis.settings.load_profile("groundup")


def pytest_report_header():
    return None if HAS_BEARTYPE else "no beartype here: shapes are NOT checked"


def pytest_collection_finish():
    """What is imported by now stays: a collection of garbage looks at it no more, which would take most of a second."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason=f"needs a CUDA GPU; torch {torch.__version__} sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_gpu)


@pytest.fixture(autouse=True)
def the_same_state_for_all():
    """Seeds, threads and paths of computation: a test that runs a whole build in this process changes them."""
    global _test
    _test = next(_tests)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def unchecked():
    """What a user sees, who runs without the type checks of the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that some tests read; never part of the project."""
    path = Path(os.environ.get("GROUNDUP_DATA") or REPOSITORY.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no data at {path}; set GROUNDUP_DATA to the folder that holds it")
    return path
