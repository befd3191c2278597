"""`import groundup as gu` offers each public name, imported on first use, whatever was imported before."""

import os
import subprocess
import sys

import pytest

import groundup


@pytest.mark.parametrize("name", groundup.__all__)
def test_every_public_name_is_there(name):
    assert getattr(groundup, name) is not None
    assert name in dir(groundup)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Transfromer"):
        _ = groundup.Transfromer  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "first", ["pass", "import groundup.train", "from groundup.train import objectives", "groundup.objectives"]
)
def test_train_is_a_room_and_callable_in_any_order(first):
    source = f"""
import groundup
{first}
assert callable(groundup.train), groundup.train
assert groundup.objectives.next_token is groundup.train.objectives.next_token
try:
    groundup.train()
except TypeError as error:
    assert "missing" in str(error), error
"""
    subprocess.run([sys.executable, "-c", source], check=True, timeout=120)


def test_threads_that_wait_are_passive_before_torch_is_there():
    source = "import groundup, os, sys; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in ((environment, "passive"), (environment | {"OMP_WAIT_POLICY": "active"}, "active")):
        ran = subprocess.run([sys.executable, "-c", source], env=given, capture_output=True, text=True, check=True)
        assert ran.stdout.split() == ["False", expected]
