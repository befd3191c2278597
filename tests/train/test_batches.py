"""The size of a batch: one step in any number of parts, a ramp, and what the noise scale advises."""

import pytest
import torch

from groundup.optim import BatchRamp
from groundup.train.noise import batch_advice
from tests.train.small import Batches, batch, tiny_run


class Pieces:
    """The batches of `Batches`, each in so many pieces."""

    def __init__(self, parts):
        self.parts = parts

    def __iter__(self):
        number = 0
        while True:
            yield from ({"tokens": part} for part in batch(number)["tokens"].chunk(self.parts))
            number += 1


@pytest.mark.parametrize(("parts", "micro"), [(1, 2), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_every_factorisation_of_a_batch_has_the_same_losses(parts, micro):
    """parts batches a step, each in `micro` micro-batches: 4 rows a step in all cases."""
    whole, _, expected = tiny_run(8)
    model, _, made = tiny_run(8, source=Pieces(parts), batches_per_step=parts, micro_batches=micro)
    assert made.losses == pytest.approx(expected.losses, rel=2e-6)
    assert made.tokens == expected.tokens
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        # AdamW divides by a root, so a gradient near zero moves by a rounding error's share of the rate.
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_a_run_can_ramp_its_batch():
    source = Batches()
    _, _, run = tiny_run(6, source=source, batches_per_step=BatchRamp(1, 3, steps=4))
    assert source.at == 1 + 1 + 2 + 2 + 3 + 3
    assert run.tokens == 12 * 4 * 8


def test_advice_by_hand():
    """At the critical batch: twice the least steps and twice the least tokens. Doubled: 1.5 and 3."""
    at = batch_advice(1000, 1000)
    assert (at.steps, at.tokens) == (2.0, 2.0)
    assert str(at) == (
        "a batch of 1,000 tokens is 1 of the critical 1,000: "
        "twice as large would take 25% fewer steps and 50% more tokens to the same loss"
    )
    small, large = batch_advice(10, 1000), batch_advice(100_000, 1000)
    assert (small.steps, small.tokens) == (101.0, 1.01) and (large.steps, large.tokens) == (1.01, 101.0)
    assert "50% fewer steps and 1% more" in str(small) and "0% fewer steps and 99% more" in str(large)
    with pytest.raises(ValueError, match="noise_scale=0"):
        batch_advice(1000, 0)
