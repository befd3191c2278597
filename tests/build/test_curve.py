"""The curve: whole points only, the best weights kept and put back, and nothing left of a killed session's future."""

import pytest
import torch

from groundup import presets
from groundup.build.curve import Curve
from groundup.model import Transformer


@pytest.fixture
def model():
    return Transformer(presets.llama(vocab_size=20, d_model=8, num_layers=1, num_heads=1, d_ff=8))


def add(curve, model, *points):
    """Points (step, bits per byte); the model's weights say which step they are of."""
    for step, bits in points:
        with torch.no_grad():
            model.embed.weight.fill_(step)
        curve.add({"step": step, "bits_per_byte": bits}, model)


def step_of(model):
    return int(model.embed.weight[0, 0])


def test_the_best_weights_come_back_where_training_made_the_model_worse(tmp_path, model):
    curve = Curve(tmp_path)
    add(curve, model, (10, 3.0), (20, 2.0), (30, 2.5))
    assert [file.name for file in (tmp_path / "best").iterdir()] == ["step-20.safetensors"]
    assert curve.restore_best(model) == {"step": 20, "bits_per_byte": 2.0}
    assert step_of(model) == 20


@pytest.mark.parametrize("last", [1.9, 2.001])
def test_the_last_weights_stay_where_they_are_as_good(tmp_path, model, last):
    curve = Curve(tmp_path)
    add(curve, model, (10, 3.0), (20, 2.0), (30, last))
    assert curve.restore_best(model) is None
    assert step_of(model) == 30


def test_points_that_a_killed_session_made_later_are_forgotten_with_their_weights(tmp_path, model):
    add(Curve(tmp_path), model, (10, 3.0), (20, 2.0), (30, 1.0))
    curve = Curve(tmp_path)
    add(curve, model, (20, 2.2))
    assert [p["step"] for p in curve.points()] == [10, 20]
    assert curve.best() == {"step": 20, "bits_per_byte": 2.2}
    assert not (tmp_path / "best" / "step-30.safetensors").exists()


def test_a_line_that_was_cut_short_is_no_point(tmp_path, model):
    add(Curve(tmp_path), model, (10, 3.0))
    with (tmp_path / "curve.jsonl").open("a") as file:
        file.write('{"step": 20, "bits_')
    assert [p["step"] for p in Curve(tmp_path).points()] == [10]


def test_weights_are_cleared_and_the_points_stay(tmp_path, model):
    curve = Curve(tmp_path)
    curve.clear()
    add(curve, model, (10, 3.0))
    curve.clear()
    assert not (tmp_path / "best").exists()
    assert len(curve.points()) == 1
    assert curve.best() is None
    assert curve.restore_best(model) is None
