import pytest
import torch

from groundup.train import precision
from groundup.train.compiling import compile_blocks
from tests.train.small import batch, tiny_model, tiny_run


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp64"])
def test_activations_change_and_master_weights_do_not(name):
    model = tiny_model()
    precision.apply(model, name)
    hidden = model.hidden(batch(0)["tokens"])
    assert hidden.dtype == model.compute_dtype == precision.DTYPES[name]
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_bf16_learns_as_fp32_does():
    model = tiny_model()
    precision.apply(model, "bf16")
    _, _, run = tiny_run(40, model=model)
    _, _, full = tiny_run(40)
    assert run.losses[-1] == pytest.approx(full.losses[-1], abs=0.15)


def test_what_cannot_be_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="did you mean 'bf16'"):
        precision.apply(tiny_model(), "bf61")
    with pytest.raises(ValueError, match="65,504"):
        precision.apply(tiny_model(), "fp16")


def test_the_probe_chooses():
    assert precision.choose({"fp32": 2.0, "bf16": 1.0}.__getitem__) == "bf16"
    assert precision.choose({"fp32": 1.0, "bf16": 0.97}.__getitem__) == "fp32"
    assert precision.choose({"fp32": 1.0, "bf16": 2.0}.__getitem__) == "fp32"


def broken_compiler(*args, **kwargs):
    raise RuntimeError("No working C++ compiler found")


def test_without_a_compiler_auto_says_so_once_and_true_is_an_error(monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", broken_compiler)
    model = tiny_model()
    assert not compile_blocks(model, required=False)
    assert not compile_blocks(model, required=False)
    assert caplog.text.count("No working C++ compiler found") == 1
    with pytest.raises(ValueError, match="compile=False"):
        tiny_run(1, model=model, compile=True)
    _, _, run = tiny_run(1, model=model, compile="auto")
    assert run.step == 1


def test_a_model_without_blocks_is_not_compiled():
    with pytest.raises(ValueError, match="no `blocks`"):
        compile_blocks(torch.nn.Linear(2, 2), required=True)


@pytest.mark.slow
def test_compiled_blocks_train_alike_and_keep_their_names():
    compiled, plain = tiny_model(), tiny_model()
    _, _, a = tiny_run(5, model=compiled, compile=True)
    _, _, b = tiny_run(5, model=plain)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert a.losses == pytest.approx(b.losses, rel=1e-4)
