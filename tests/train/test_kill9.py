"""kill -9 at random moments: see kill9.py, which also runs as a program with any number of kills."""

import os
import subprocess
import sys

import pytest

from tests.thorough import times


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks, and this system cannot")
@pytest.mark.parametrize("kills", [12, pytest.param(times(25), marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_if_nothing_had_happened(repository, kills):
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.kill9", "--kills", str(kills)],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "0 differences" in done.stdout
