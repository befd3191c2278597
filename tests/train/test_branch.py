"""Cooldowns that leave one trunk: each is, to the bit, the run that knew its end from the beginning."""

import pytest

from groundup.optim import SOAP, AdamW, constant, warmup_stable_decay
from groundup.train import cool_down, next_token, read_metrics
from tests.train.small import Batches, same_weights, tiny_model, tiny_run


def trunk(folder, make=AdamW):
    model = tiny_model()
    tiny_run(
        14,
        model=model,
        optimizer=make(model, lr=1e-2),
        schedule=constant(3),
        run_dir=folder,
        checkpoint_every=4,
        keep=9,
    )


def branch(folder, make=AdamW, **options):
    model = tiny_model()
    settings = dict(progress=False, log_every=1)
    made = cool_down(
        model, Batches(), next_token, make(model, lr=1e-2), folder, constant(3), **settings, **options
    )  # fmt: skip
    return model, made


@pytest.mark.parametrize("make", [AdamW, SOAP])
def test_one_trunk_gives_two_cooldowns_each_as_if_known_before(tmp_path, make):
    trunk(tmp_path / "trunk", make)
    before = sorted(path.name for path in (tmp_path / "trunk" / "checkpoints").iterdir())
    for at, steps in ((8, 4), (12, 12)):
        model, made = branch(tmp_path / "trunk", make, at=at, steps=steps, out=tmp_path / f"branch-{at}")
        known = tiny_model()
        _, _, expected = tiny_run(
            at + steps, model=known, optimizer=make(known, lr=1e-2),
            schedule=warmup_stable_decay(3, at + steps, steps / (at + steps)),
        )  # fmt: skip
        assert same_weights(model, known)
        assert made.losses == expected.losses and made.step == at + steps
        rates = [record["lr"] for record in read_metrics(tmp_path / f"branch-{at}") if "lr" in record]
        assert len(rates) == steps and rates[0] == 1e-2 and rates[-1] == pytest.approx(1e-2 / steps)
    assert sorted(path.name for path in (tmp_path / "trunk" / "checkpoints").iterdir()) == before


def test_the_newest_checkpoint_is_where_it_leaves_by_default(tmp_path):
    trunk(tmp_path)
    _, made = branch(tmp_path, steps=2)
    assert made.step == 16


def test_a_trunk_without_the_checkpoint_says_which_there_are(tmp_path):
    with pytest.raises(ValueError, match="no checkpoints to branch from"):
        branch(tmp_path, steps=2)
    trunk(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint after 9 steps; there are some after 4, 8, 12, 14"):
        branch(tmp_path, at=9, steps=2)
