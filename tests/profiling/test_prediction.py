"""A step's cost from shallow models: the straight line, and memory that must come out as predicted."""

from dataclasses import replace

import pytest
import torch

from groundup import presets
from groundup.model import MLPConfig, MoEConfig
from groundup.profiling.prediction import Prediction, StepSettings, perform, predict_step, undisturbed

CPU = torch.device("cpu")
SMALL = presets.llama(vocab_size=128, d_model=32, num_layers=6, num_heads=2, context_length=32)


def peaks(forward: int, backward: int, update: int) -> dict[str, int]:
    return {"forward": forward, "backward": backward, "update": update}


def test_a_straight_line_through_two_depths():
    found = Prediction(8, {1: 1.0, 3: 2.0}, {1: peaks(100, 90, 10), 3: peaks(120, 130, 70)})
    assert found.cost.seconds == pytest.approx(1.0 + 7 * 0.5)
    # At eight rounds: forward 100 + 7 * 10, backward 90 + 7 * 20, update 10 + 7 * 30: the peak moves.
    assert found.cost.peak_bytes == max(170, 230, 220)


def test_a_single_round_is_its_own_prediction():
    found = Prediction(1, {1: 1.5}, {1: peaks(100, 90, 10)})
    assert found.cost.seconds == 1.5 and found.cost.peak_bytes == 100


def test_the_slower_half_is_left_out():
    assert undisturbed([4.0, 1.0, 2.0, 100.0]) == 1.5
    assert undisturbed([3.0]) == 3.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16", "optimizer": "muon_adamw"},
        {"micro_batches": 2},
        {"recompute": True},
    ],
)
def test_memory_comes_as_predicted(changes):
    settings = StepSettings(**{"batch_size": 4, "context_length": 32, **changes})
    found = predict_step(SMALL, settings, CPU)
    assert sorted(found.seconds) == sorted(found.peaks) == [1, 4]  # and never the whole model
    measured = perform(SMALL, settings, CPU, steps=1)
    assert found.cost.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.02)
    assert found.cost.seconds > 0


def test_recomputing_saves_memory_in_the_prediction():
    plain, again = (
        predict_step(SMALL, StepSettings(16, 32, recompute=recompute), CPU).cost.peak_bytes
        for recompute in (False, True)
    )
    assert again < 0.8 * plain


def test_a_pattern_is_continued_as_a_whole():
    dense = SMALL.blocks[0]
    mixed = replace(SMALL, blocks=(dense, replace(dense, ffn=MoEConfig(4, 2, 16)), replace(dense, ffn=MLPConfig(64))))
    settings = StepSettings(batch_size=4, context_length=32)
    assert sorted(predict_step(replace(mixed, num_layers=12), settings, CPU).seconds) == [1, 3]
    with pytest.raises(ValueError, match="num_layers=7: expected a multiple of the 3 blocks"):
        predict_step(replace(mixed, num_layers=7), settings, CPU)
