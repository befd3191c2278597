import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup import presets
from groundup.compression.quantize import (
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

SETTINGS = [Quantization(8, 32), Quantization(4, 32), Quantization(4, 16, embeddings=False)]


def new_model(**options) -> Transformer:
    torch.manual_seed(0)
    shape = dict(vocab_size=260, d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, context_length=48)
    return Transformer(presets.llama(**shape, **options)).eval()


def test_by_hand():
    eight = pack(torch.tensor([[127.0, -64.0, 0.0, 1.4]]), 8, 4)
    assert eight.scales.tolist() == [[1.0]] and eight.values.tolist() == [[127, -64, 0, 1]]
    four = pack(torch.tensor([[-3.0, 12.0, 0.4, 0.6]]), 4, 4)
    assert (four.scales.tolist(), four.lows.tolist()) == ([[1.0]], [[-3.0]])
    assert four.values.tolist() == [[0 | 15 << 4, 3 | 4 << 4]]
    assert unpack(four, 4).tolist() == [[-3, 12, 0, 1]]


@given(st.lists(st.lists(st.integers(0, 15), min_size=6, max_size=6), min_size=1, max_size=4))
def test_nibbles_come_back_exactly(rows):
    values = torch.tensor(rows, dtype=torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(values)), values) and pack_nibbles(values).shape[1] == 3


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 96])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_each_weight_is_half_a_step_away_at_most(columns, scale):
    weight = torch.randn(5, columns) * scale
    for bits, levels in ((8, 127), (4, 15)):
        packed = pack(weight, bits, 32)
        error = (unpack(packed, columns) - weight).abs()
        step = packed.scales.float().repeat_interleave(32, 1)[:, :columns]
        low = 0 if packed.lows is None else packed.lows.float().abs().repeat_interleave(32, 1)[:, :columns] * 2**-11
        assert (error <= step / 2 * 1.001 + low + 2**-24).all()
        ranges = weight.abs().amax(1) / levels if bits == 8 else (weight.amax(1) - weight.amin(1)) / levels
        assert (step.amax(1) <= ranges * 1.2 + 2**-14 * scale + 2**-24).all()


def test_zeros_constants_and_one_large_weight():
    for bits in (8, 4):
        assert unpack(pack(torch.zeros(2, 40), bits, 32), 40).abs().sum() == 0
        assert torch.allclose(unpack(pack(torch.full((1, 32), 0.5), bits, 32), 32), torch.full((1, 32), 0.5), rtol=1e-3)
        lone = torch.full((1, 64), 0.01)
        lone[0, 0] = 100.0
        assert torch.allclose(unpack(pack(lone, bits, 32), 64)[:, 32:], lone[:, 32:], rtol=1e-2)


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
        for settings in (Quantization(8), Quantization(4)):
            packed = quantize_model(copy.deepcopy(model), settings)
            sizes.append(weight_bytes(packed))
            errors.append(float((packed(tokens) - exact).norm() / exact.norm()))
    assert errors[0] < 0.02 < errors[1] < 0.3
    assert sizes[1] < 0.28 * sizes[0] and sizes[2] < 0.17 * sizes[0]  # 8.5 and 5 bits of 32


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
    model = quantize_model(new_model(), Quantization(8))
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
    with pytest.raises(ValueError, match="group=3"):
        Quantization(4, 3)
    save_quantized(model, Quantization(8, 16), tmp_path)
    with pytest.raises(ValueError, match="does not fit its config at"):
        load_quantized(tmp_path)
    (tmp_path / "quantized.json").write_text("[]")
    with pytest.raises(ValueError, match="expected the keys"):
        load_quantized(tmp_path)
