"""Which modules are handed to the compiler, and what is done where there is none."""

import logging

import pytest
import torch

from groundup.train import compiling
from groundup.train.compiling import compile_blocks
from tests.train.small import tiny_model


@pytest.fixture
def asked(monkeypatch):
    """A compiler that changes nothing and notes what it was given."""
    notes = []

    def compiler(function, **options):
        notes.append((function, options))
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    return notes


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """This user's own cache is not looked at."""
    monkeypatch.setattr(compiling, "remove_halves", lambda: [])


def test_every_block_and_the_final_norm_are_compiled_in_place_and_nothing_else(asked):
    model = tiny_model()
    names = list(model.state_dict())
    assert compile_blocks(model, required=True) and model.compiled
    owners = [function.__self__ for function, _ in asked if hasattr(function, "__self__")]
    assert owners == [*model.blocks, model.final_norm] and len(asked) == len(owners) + 1  # and one tiny trial
    assert all(options == {"dynamic": False} for _, options in asked)
    assert list(model.state_dict()) == names


def test_halves_are_removed_from_the_cache_once_and_before_anything_is_compiled(asked, monkeypatch):
    monkeypatch.setattr(compiling, "remove_halves", lambda: asked.append("removed"))
    assert compile_blocks(tiny_model(), required=True)
    assert asked[0] == "removed" and asked.count("removed") == 1


def test_a_model_without_blocks_stays_as_it_is_and_that_is_said_once(asked, monkeypatch, caplog):
    monkeypatch.setattr(compiling, "_said", set())
    plain = torch.nn.Linear(2, 2)
    with caplog.at_level(logging.WARNING):
        assert not compile_blocks(plain, required=False) and not compile_blocks(plain, required=False)
    assert caplog.text.count("not compiling: the model has no `blocks`") == 1
    assert asked == [] and not hasattr(plain, "compiled")


@pytest.mark.parametrize("kind", [RuntimeError, OSError, ImportError])
def test_the_compilers_own_reason_is_given(kind, monkeypatch):
    def broken(*_, **__):
        raise kind("no C++ compiler\nand forty lines of trace")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match=r"does not work here \(no C\+\+ compiler\); use compile=False"):
        compile_blocks(tiny_model(), required=True)
