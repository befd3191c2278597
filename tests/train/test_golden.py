"""Checkpoints of earlier versions: what a version once wrote, every later one loads and goes on with.

`golden/VERSION/step-4` is the fourth step of `small.tiny_run(4)`. A release adds a folder; none is ever written again.
A field that is added to a config is one of the things that would make an old run's checkpoint a stranger's.
"""

from pathlib import Path

import pytest

from groundup.train import checkpoint
from tests.train.small import tiny_run

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*/step-4"))
LOSSES = [4.026668, 3.698914, 3.587676, 2.879557, 2.567258, 2.487661, 1.955136, 1.816547]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parent.name)
def test_an_old_checkpoint_is_whole_and_training_goes_on_from_it(path):
    saved = checkpoint.load(path)
    assert saved.step == 4 and saved.tensors["optimizer.exp_avg.embed.weight"].shape == (31, 16)
    _, _, run = tiny_run(8, resume=path)
    assert run.losses[:4] == saved.tensors["run.losses"].tolist()
    assert run.losses == pytest.approx(LOSSES, rel=1e-4)  # other CPUs round otherwise


def test_there_is_one_of_this_version():
    assert [path.parent.name for path in GOLDEN] == ["0.1.0"]
