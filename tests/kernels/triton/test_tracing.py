"""Kernels inside of graphs of torch.compile."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
def test_kernels_are_traced_into_one_graph_with_what_surrounds_them(repository):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(repository / "src"), str(repository)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.tracing"],
        capture_output=True,
        text=True,
        env=env,
        cwd=repository,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 5 and all(found.values()), found
