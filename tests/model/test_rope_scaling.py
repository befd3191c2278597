"""Each way of stretching a rotary embedding, held to its description and to `transformers`."""

import math

import pytest
import torch

from groundup.kernels import rope_frequencies
from groundup.model import Rope
from groundup.model.rope_scaling import LinearScaling, Llama3Scaling, NTKScaling, YarnScaling, yarn_amplitude

D_HEAD, THETA = 64, 10_000.0

CASES = {
    "linear": (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        Llama3Scaling(8.0, 1.0, 4.0, 2048),
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "yarn": (YarnScaling(16.0, 2048), {"rope_type": "yarn", "factor": 16.0}),
    "yarn_bounds": (
        YarnScaling(16.0, 2048, 16.0, 2.0, given_amplitude=1.3),
        {"rope_type": "yarn", "factor": 16.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3},
    ),
    "yarn_deepseek": (
        YarnScaling(40.0, 2048, given_amplitude=yarn_amplitude(40.0, 0.7) / yarn_amplitude(40.0, 1.3)),
        {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    ),
    "yarn_unrounded": (
        YarnScaling(32.0, 2048, rounded=False),
        {"rope_type": "yarn", "factor": 32.0, "truncate": False},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_against_transformers(name):
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    scaling, parameters = CASES[name]
    config = transformers.LlamaConfig(
        hidden_size=2 * D_HEAD, num_attention_heads=2, max_position_embeddings=8 * 2048,
        rope_parameters={"rope_theta": THETA, "original_max_position_embeddings": 2048} | parameters,
    )  # fmt: skip
    expected, amplitude = rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
    torch.testing.assert_close(scaling.scale(rope_frequencies(D_HEAD, THETA), THETA), expected)
    assert scaling.amplitude == pytest.approx(amplitude)


def test_a_larger_base_by_hand():
    factor, d = 8.0, D_HEAD
    expected = rope_frequencies(d, THETA * factor ** (d / (d - 2)))
    scaled = NTKScaling(factor).scale(rope_frequencies(d, THETA), THETA)
    torch.testing.assert_close(scaled, expected)
    assert scaled[0] == 1 and scaled[-1] == pytest.approx(rope_frequencies(d, THETA)[-1] / factor)


def test_llama3_by_hand():
    """Turns in 2 pi tokens of 8, 2.5 and 0.5: kept, half of each, a quarter."""
    scaled = Llama3Scaling(4.0, 1.0, 4.0, round(2 * math.pi * 1000)).scale(torch.tensor([8e-3, 2.5e-3, 5e-4]), THETA)
    expected = torch.tensor([8e-3, 2.5e-3 * (0.5 + 0.5 / 4), 5e-4 / 4])
    torch.testing.assert_close(scaled, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scaling", [scaling for scaling, _ in CASES.values()] + [NTKScaling(4.0)])
def test_fast_pairs_stay_and_no_pair_is_slowed_by_more_than_the_factor(scaling):
    plain = rope_frequencies(D_HEAD, THETA)
    ratio = plain / scaling.scale(plain, THETA)
    assert (ratio <= scaling.factor * 1.0001).all() and (ratio >= 0.9999).all()
    assert (ratio.diff() >= -1e-4).all()
    if not isinstance(scaling, LinearScaling):
        assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(scaling.factor, rel=1e-4)


def test_the_amplitude_is_in_the_tables():
    rope = Rope(scaling=YarnScaling(16.0, 2048))
    cos, sin = rope.tables(torch.arange(5)[None], 8)
    torch.testing.assert_close(cos.square() + sin.square(), torch.full_like(cos, (0.1 * math.log(16) + 1) ** 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearScaling(0.0),
        lambda: NTKScaling(-1.0),
        lambda: Llama3Scaling(float("inf")),
        lambda: YarnScaling(float("nan"), 8),
        lambda: Llama3Scaling(8.0, 4.0, 1.0),
        lambda: YarnScaling(8.0, 8, 1.0, 2.0),
    ],
)
def test_numbers_that_make_no_sense(make):
    with pytest.raises(ValueError, match="rotary scaling"):
        make()


@pytest.mark.parametrize("make", [lambda: YarnScaling(4.0, 0), lambda: Llama3Scaling(original_context=-5)])
def test_a_trained_length_of_nothing(make):
    with pytest.raises(ValueError, match="original_context"):
        make()


def test_yarn_needs_a_base_above_one():
    with pytest.raises(ValueError, match="theta=1.0; YaRN needs one above 1"):
        Rope(1.0, scaling=YarnScaling(4.0, 64))


def test_the_sizes_that_are_advised_fit():
    with pytest.raises(ValueError, match="use 62 or 63") as caught:
        Rope(fraction=0.3).check(64, "d_head")
    assert not str(caught.value).endswith(",")
    for channels in (62, 63):
        Rope(fraction=0.3).check(channels, "d_head")
