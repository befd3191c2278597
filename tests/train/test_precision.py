from dataclasses import replace

import pytest
import torch

from groundup.kernels.quantized_linear import real
from groundup.model import LoRAConfig, MoEConfig, Transformer, add_lora
from groundup.model.linear import Linear
from groundup.train import LossScaler, precision
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
    with pytest.raises(ValueError, match="multiples of 32"):
        precision.apply(tiny_model(), "mxfp8")  # d_model = 16


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


@pytest.fixture
def anew(monkeypatch):
    """As if nothing had been said yet."""
    monkeypatch.setattr(precision, "_said", set())


def wide_model(**options):
    return tiny_model(**dict(d_model=64, d_ff=96, d_head=32) | options)


def quantised(model):
    return {path for path, m in model.named_modules() if isinstance(m, Linear) and m.products is not None}


def test_fp16_on_a_cpu_says_once_that_it_is_slow(anew, caplog):
    for _ in range(2):
        precision.apply(tiny_model(), "fp16")
    assert caplog.text.count("emulated") == 1


@pytest.mark.parametrize("name", ["fp8", "mxfp8", "int8"])
def test_eight_bits_are_for_the_linear_layers_of_blocks(name, anew, caplog):
    model = wide_model(tie_embeddings=False)
    precision.apply(model, name)
    layers = [f"mixer.{w}" for w in ("wq", "wk", "wv", "wo")] + [f"ffn.{w}" for w in ("gate", "up", "down")]
    assert quantised(model) == {f"blocks.{i}.{layer}" for i in range(2) for layer in layers}
    assert model.compute_dtype == torch.bfloat16
    assert caplog.text.count("simulated on this cpu") == (0 if real(name, "cpu") else 1)
    precision.apply(model, "bf16")
    assert not quantised(model)


def test_layers_that_do_not_fit_are_named(anew, caplog):
    model = wide_model(d_ff=88)
    precision.apply(model, "fp8")
    assert "that do not fit: blocks.*.ffn.gate, blocks.*.ffn.up, blocks.*.ffn.down\n" in caplog.text
    assert quantised(model) == {f"blocks.{i}.mixer.{w}" for i in range(2) for w in ("wq", "wk", "wv", "wo")}
    caplog.clear()
    config = wide_model().config
    with_experts = tuple(replace(block, ffn=MoEConfig(4, 2, 32)) for block in config.blocks)
    precision.apply(Transformer(replace(config, blocks=with_experts)), "fp8")
    assert "blocks.*.ffn.experts.gate" in caplog.text


def test_adapters_stay_and_their_base_multiplies_float8():
    model = add_lora(wide_model(), LoRAConfig(r=4, patterns=("blocks.*.mixer.w[qv]",)))
    precision.apply(model, "fp8")
    assert "blocks.0.mixer.wq" in quantised(model)
    _, _, run = tiny_run(12, model=model)
    assert run.losses[-1] < run.losses[0]


@pytest.mark.parametrize("name", ["fp8", "mxfp8", "int8"])
def test_eval_mode_is_plain_bf16(name):
    """What is generated or scored must not depend on what else is in the batch."""
    model, plain = wide_model(), wide_model()
    precision.apply(model, name)
    precision.apply(plain, "bf16")
    tokens = batch(0)["tokens"]
    assert not torch.equal(model(tokens), plain(tokens))
    assert torch.equal(model.eval()(tokens), plain.eval()(tokens))


@pytest.mark.parametrize("name", ["fp16", "fp8", "mxfp8", "int8"])
def test_narrow_types_learn_as_fp32_does(name):
    model = wide_model()
    precision.apply(model, name)
    _, _, run = tiny_run(40, model=model, micro_batches=2)
    _, _, full = tiny_run(40, model=wide_model(), micro_batches=2)
    assert run.losses[-1] == pytest.approx(full.losses[-1 - run.overflows], abs=0.15) and run.losses[-1] < 1.5


@pytest.mark.parametrize("name", ["fp8", "mxfp8", "int8"])
def test_recomputed_blocks_have_the_same_gradients(name):
    weights = []
    for recompute in (False, True):
        model = wide_model()
        precision.apply(model, name)
        model.recompute = recompute
        tiny_run(3, model=model)
        weights.append(model)
    assert all(torch.equal(a, b) for a, b in zip(weights[0].parameters(), weights[1].parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp16", "fp8", "mxfp8", "int8"])
def test_narrow_types_train_compiled(name):
    runs = []
    for compile in (True, False):
        model = wide_model()
        precision.apply(model, name)
        # A scale at which neither overflows: compiled blocks round less often, so theirs may be higher.
        _, _, run = tiny_run(5, model=model, compile=compile, scaler=LossScaler(2.0**10) if name == "fp16" else None)
        runs.append(run.losses)
        assert not run.overflows
    assert runs[0] == pytest.approx(runs[1], abs=0.05)
