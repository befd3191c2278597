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
    kept = curve.restore_best(model, 0.002)
    assert kept is not None
    assert (kept["step"], step_of(model)) == (20, 20)


@pytest.mark.parametrize("last", [1.9, 2.003])
def test_the_last_weights_stay_where_they_are_as_good(tmp_path, model, last):
    curve = Curve(tmp_path)
    add(curve, model, (10, 3.0), (20, 2.0), (30, last))
    assert curve.restore_best(model, 0.002) is None
    assert step_of(model) == 30


def test_points_that_a_killed_session_made_later_are_forgotten_with_their_weights(tmp_path, model):
    add(Curve(tmp_path), model, (10, 3.0), (20, 2.0), (30, 1.0))
    curve = Curve(tmp_path)
    add(curve, model, (20, 2.2))
    assert [p["step"] for p in curve.points()] == [10, 20]
    assert curve.best()["step"] == 20
    assert not (tmp_path / "best" / "step-30.safetensors").exists()


@pytest.mark.parametrize("content", ["garbage", "{}", '{"step": 1, "bits_per_byte": "low"}', "[1]"])
def test_a_damaged_curve_is_named_with_the_remedy(tmp_path, model, content):
    (tmp_path / "curve.jsonl").write_text(content + "\n")
    with pytest.raises(ValueError, match=r"curve\.jsonl: damaged .*begin a new run"):
        add(Curve(tmp_path), model, (10, 3.0))


def test_damaged_weights_are_named_with_the_remedy(tmp_path, model):
    curve = Curve(tmp_path)
    add(curve, model, (10, 1.0), (20, 2.0))
    file = tmp_path / "best" / "step-10.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"step-10\.safetensors: damaged; .*delete it"):
        curve.restore_best(model, 0.002)
    file.unlink()
    assert curve.restore_best(model, 0.002) is None


@pytest.mark.parametrize("bits", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_no_point(tmp_path, model, bits):
    curve = Curve(tmp_path)
    add(curve, model, (10, bits), (20, 2.0))
    assert [p["step"] for p in curve.points()] == [20]


def test_a_disk_that_refuses_the_weights_leaves_the_curve_as_it_was(tmp_path, model, monkeypatch):
    curve = Curve(tmp_path)
    add(curve, model, (10, 3.0))

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groundup.build.curve.write_tensors", refuse)
    with pytest.raises(OSError, match="No space"):
        add(curve, model, (20, 2.0))
    assert curve.best()["step"] == 10


def test_what_a_killed_session_left_is_swept(tmp_path, model):
    curve = Curve(tmp_path)
    add(curve, model, (10, 3.0))
    (tmp_path / "best" / ".step-20.safetensors.abc.tmp").write_text("half")
    (tmp_path / "best" / ".tmpXYZ").write_text("half")
    add(curve, model, (20, 2.0))
    assert [file.name for file in (tmp_path / "best").iterdir()] == ["step-20.safetensors"]
    (tmp_path / "best" / ".tmpXYZ").write_text("half")
    curve.clear()
    assert not (tmp_path / "best").exists()
    assert len(curve.points()) == 2
    assert curve.restore_best(model, 0.002) is None


def test_an_empty_curve_has_nothing_to_clear_or_to_restore(tmp_path, model):
    curve = Curve(tmp_path)
    curve.clear()
    assert curve.best() is None
    assert curve.restore_best(model, 0.002) is None
