"""Twins are found by path; one rule for fallback and refusal."""

import logging
import sys
import textwrap

import pytest
import torch

from groundup.kernels import _dispatch, backend

REFERENCE = """
from groundup.kernels._dispatch import op

@op
def double(x, times=1):
    return x * 2 * times

@op
def halve(x):
    return x / 2
"""

TWIN = """
def refuses_double(x, times=1):
    if times != 1:
        return f"times={times}"

def double(x, times=1):
    return x * 2 + 1000
"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A package `fakeroom.kernels` with twins as given; returns its `double` and `halve`."""

    def build(**twins: str):
        package = tmp_path / "fakeroom"
        for folder in (package, package / "kernels", *(package / "kernels" / name for name in twins)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text("")
        (package / "kernels" / "maths.py").write_text(REFERENCE)
        for name, source in twins.items():
            (package / "kernels" / name / "maths.py").write_text(textwrap.dedent(source))
        return __import__("fakeroom.kernels.maths", fromlist=["double"])

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_dispatch, "_said", set())
    yield build
    for name in [name for name in sys.modules if name.split(".")[0] == "fakeroom"]:
        del sys.modules[name]


ONE = torch.ones(1)


def test_without_a_twin_the_reference_runs_and_nothing_is_said(room, caplog):
    caplog.set_level(logging.INFO)
    assert room().double(ONE).item() == 2
    assert caplog.messages == []


def test_a_twin_is_found_by_path(room):
    assert room(numba=TWIN).double(ONE).item() == 1002


def test_the_reference_stays_reachable(room):
    maths = room(numba=TWIN)
    assert maths.double.reference(ONE).item() == 2
    with backend("reference"):
        assert maths.double(ONE).item() == 2
    assert maths.double(ONE).item() == 1002


def test_a_default_that_refuses_falls_back_and_says_so_once(room, caplog):
    caplog.set_level(logging.INFO)
    maths = room(numba=TWIN)
    assert maths.double(ONE, times=3).item() == 6
    assert maths.double(ONE, times=3).item() == 6
    assert caplog.messages == ["double: times=3; using the reference instead of numba"]


def test_an_explicit_request_that_is_refused_is_an_error(room):
    maths = room(numba=TWIN)
    with (
        backend("numba"),
        pytest.raises(ValueError, match="double: backend 'numba' was asked for, but times=3"),
    ):
        maths.double(ONE, times=3)


def test_an_explicit_request_without_a_twin_is_an_error(room):
    maths = room(numba=TWIN)
    with backend("triton"), pytest.raises(ValueError, match="there is no triton kernel"):
        maths.double(ONE)
    with backend("numba"), pytest.raises(ValueError, match="halve: .* there is no numba kernel"):
        maths.halve(ONE)


def test_a_twin_whose_language_is_missing_is_a_reason(room, caplog):
    caplog.set_level(logging.INFO)
    maths = room(numba="import a_language_nobody_has")
    assert maths.double(ONE).item() == 2
    assert "the module 'a_language_nobody_has' is not installed" in caplog.text
    with backend("numba"), pytest.raises(ValueError, match="a_language_nobody_has"):
        maths.double(ONE)


def test_a_twin_that_is_broken_is_not_hidden(room):
    maths = room(numba="raise RuntimeError('broken twin')")
    with pytest.raises(RuntimeError, match="broken twin"):
        maths.double(ONE)


def test_one_refuses_serves_a_file_with_one_op(room):
    maths = room(numba="def refuses(x, times=1): return 'never'\ndef double(x, times=1): return x")
    with backend("numba"), pytest.raises(ValueError, match="never"):
        maths.double(ONE)


def test_a_device_without_a_language_uses_the_reference(room):
    assert room(numba=TWIN).double(torch.ones(1, device="meta")).is_meta


def test_requests_nest(room):
    maths = room(numba=TWIN)
    with backend("numba"):
        with backend("reference"):
            assert maths.double(ONE).item() == 2
        assert maths.double(ONE).item() == 1002


def test_an_unknown_backend_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'triton'"):
        backend("tritn")


def test_compiled_code_takes_the_reference_instead_of_numba_in_one_graph(room):
    maths = room(numba=TWIN)
    compiled = torch.compile(lambda x: maths.double(x) + maths.halve(x), backend="eager", fullgraph=True)
    assert compiled(ONE).item() == 2.5
