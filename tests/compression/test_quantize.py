import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup import presets
from groundup.compression.quantize import (
    FORMATS,
    Quantization,
    QuantizedEmbedding,
    QuantizedLinear,
    load_quantized,
    pack,
    pack_nibbles,
    quantize_model,
    save_quantized,
    unpack,
    unpack_nibbles,
    weight_bytes,
)
from groundup.inference import Engine
from groundup.model import Transformer
from groundup.tokenizer import Tokenizer

SETTINGS = [
    Quantization("int8", 32),
    Quantization("int4", 32),
    Quantization("int4", 16, embeddings=False),
    Quantization("fp8", None),
    Quantization("fp8", 32),
]


def new_model(**options) -> Transformer:
    torch.manual_seed(0)
    shape = dict(vocab_size=260, d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, context_length=48)
    return Transformer(presets.llama(**shape, **options)).eval()


def test_by_hand():
    eight = pack(torch.tensor([[127.0, -64.0, 0.0, 1.4]]), "int8", 4)
    assert eight.scales.tolist() == [[1.0]] and eight.values.tolist() == [[127, -64, 0, 1]]
    four = pack(torch.tensor([[-3.0, 12.0, 0.4, 0.6]]), "int4", 4)
    assert (four.scales.tolist(), four.lows.tolist()) == ([[1.0]], [[-3.0]])
    assert four.values.tolist() == [[0 | 15 << 4, 3 | 4 << 4]]
    assert unpack(four, 4).tolist() == [[-3, 12, 0, 1]]
    float8 = pack(torch.tensor([[448.0, -17.0, 0.0, 2.0**-9]]), "fp8", None)
    assert float8.scales.tolist() == [[1.0]] and float8.values.dtype == torch.float8_e4m3fn
    assert unpack(float8, 4).tolist() == [[448, -16, 0, 2**-9]]  # from 16 to 32 the step is 2; ties go to even


@given(st.lists(st.lists(st.integers(0, 15), min_size=6, max_size=6), min_size=1, max_size=4))
def test_nibbles_come_back_exactly(rows):
    values = torch.tensor(rows, dtype=torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(values)), values) and pack_nibbles(values).shape[1] == 3


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 96])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_each_weight_is_half_a_step_away_at_most(columns, scale):
    weight = torch.randn(5, columns) * scale
    for kind, levels in (("int8", 127), ("int4", 15)):
        packed = pack(weight, kind, 32)
        error = (unpack(packed, columns) - weight).abs()
        step = packed.scales.float().repeat_interleave(32, 1)[:, :columns]
        low = 0 if packed.lows is None else packed.lows.float().abs().repeat_interleave(32, 1)[:, :columns] * 2**-11
        assert (error <= step / 2 * 1.001 + low + 2**-24).all()
        ranges = weight.abs().amax(1) / levels if kind == "int8" else (weight.amax(1) - weight.amin(1)) / levels
        assert (step.amax(1) <= ranges * 1.2 + 2**-14 * scale + 2**-24).all()


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_each_float8_weight_is_a_sixteenth_away_at_most(group, scale):
    """Three bits of mantissa: half a unit in the last place is 1/16 of the number, below the normal ones 2^-10."""
    weight = torch.randn(5, 96) * scale * torch.logspace(-4, 0, 96)
    packed = pack(weight, "fp8", group)
    error = (unpack(packed, 96) - weight).abs()
    step = packed.scales.float().repeat_interleave(group or 96, 1)
    assert (error <= torch.maximum(weight.abs() / 16, step / 1024) * 1.0001).all()
    assert (step.amax(1) <= weight.abs().amax(1) / 448 * 1.001 + 2**-24).all()


def test_bytes_are_those_of_the_formula():
    """Values and float16 scales, and nothing else: to the byte."""
    model = new_model()
    rest = sum(p.nbytes for name, p in model.named_parameters() if "norm" in name)
    weights = [p for name, p in model.named_parameters() if "norm" not in name]
    for settings, numbers in zip(SETTINGS, (1, 0.5, None, 1, 1), strict=True):
        if numbers is None:
            continue
        expected = rest
        for weight in weights:
            rows, columns = weight.shape
            groups = 1 if settings.group is None else -(-columns // settings.group)
            size = columns + columns % 2 if settings.group is None else settings.group
            expected += int(rows * groups * (size * numbers + 2 + 2 * (settings.format == "int4")))
        assert weight_bytes(quantize_model(copy.deepcopy(model), settings)) == expected


def test_zeros_constants_and_one_large_weight():
    for kind in FORMATS:
        assert unpack(pack(torch.zeros(2, 40), kind, 32), 40).abs().sum() == 0
        assert torch.allclose(unpack(pack(torch.full((1, 32), 0.5), kind, 32), 32), torch.full((1, 32), 0.5), rtol=1e-3)
        lone = torch.full((1, 64), 0.01)
        lone[0, 0] = 100.0
        assert torch.allclose(unpack(pack(lone, kind, 32), 64)[:, 32:], lone[:, 32:], rtol=1e-2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e5])
def test_what_cannot_be_kept_is_refused(bad):
    with pytest.raises(ValueError, match="not finite, or larger than 65,504"):
        pack(torch.tensor([[1.0, bad]]))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_packed_model_computes_with_the_unpacked_weights(settings, tied):
    """The same logits as an ordinary model that has the rounded weights."""
    model = new_model(tie_embeddings=tied)
    packed = quantize_model(copy.deepcopy(model), settings)
    for path, module in packed.named_modules():
        if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
            with torch.no_grad():
                model.get_submodule(path).weight.copy_(module.weight)
    tokens = torch.randint(260, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(packed(tokens), model(tokens), rtol=1e-5, atol=1e-5)
    assert not any(type(m).__name__ == "Linear" for m in packed.modules())
    assert isinstance(packed.embed, QuantizedEmbedding) == settings.embeddings


def test_more_bits_are_nearer_and_fewer_are_smaller():
    model, tokens = new_model(), torch.randint(260, (4, 40))
    sizes, errors = [weight_bytes(model)], []
    with torch.no_grad():
        exact = model(tokens)
        for settings in (Quantization("int8"), Quantization("fp8", None), Quantization("int4")):
            packed = quantize_model(copy.deepcopy(model), settings)
            sizes.append(weight_bytes(packed))
            errors.append(float((packed(tokens) - exact).norm() / exact.norm()))
    assert errors[0] < 0.02 < errors[1] < errors[2] < 0.3
    assert sizes[2] < sizes[1] < 0.28 * sizes[0] and sizes[3] < 0.17 * sizes[0]  # about 8, 8.5 and 5 bits of 32


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_saved_folder_loads_to_the_bit(tmp_path, settings):
    packed = quantize_model(new_model(tie_embeddings=True), settings)
    save_quantized(packed, settings, tmp_path / "m")
    again = load_quantized(tmp_path / "m")
    assert again.config == packed.config
    for (name, a), (other, b) in zip(packed.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and a.dtype == b.dtype and torch.equal(a, b)
    tokens = torch.randint(260, (1, 9))
    with torch.no_grad():
        assert torch.equal(packed(tokens), again(tokens))


def test_the_engine_generates_with_it():
    tokenizer = Tokenizer.train_from_iterator(["the cat"], 259, special_tokens=["<|endoftext|>"])
    model = quantize_model(new_model(), Quantization("int8"))
    done = Engine(model, tokenizer).generate([5, 6, 7], temperature=0, max_tokens=10)
    ids = [5, 6, 7]
    for _ in done.tokens:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1, :259].argmax()))
    assert ids[3:] == done.tokens


def test_mistakes_are_named(tmp_path):
    model = quantize_model(new_model())
    with pytest.raises(ValueError, match="no linear layer that is not packed"):
        quantize_model(model)
    with pytest.raises(ValueError, match="no quantized.json"):
        load_quantized(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'int4'"):
        Quantization("int44")
    with pytest.raises(ValueError, match="group=3"):
        Quantization("int4", 3)
    save_quantized(model, Quantization("int8", 16), tmp_path)
    with pytest.raises(ValueError, match="does not fit its config at"):
        load_quantized(tmp_path)
    (tmp_path / "quantized.json").write_text("[]")
    with pytest.raises(ValueError, match="expected the keys"):
        load_quantized(tmp_path)
