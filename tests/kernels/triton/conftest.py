"""For every test of a Triton kernel: the interpreter, where no GPU is, and the device that kernels run on."""

import pytest
import torch

from tests.kernels.triton.interpreted import INTERPRETED


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    if INTERPRETED:  # the switch is read again, here and there, when a kernel runs
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def device():
    """Where kernels of this process run: on the GPU, or interpreted on the CPU."""
    pytest.importorskip("triton")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
