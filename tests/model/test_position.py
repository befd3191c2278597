import math

import pytest
import torch

from groundup.kernels import apply_rope
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    Layout,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    Rope,
    SinusoidalPositions,
    Transformer,
)
from groundup.model.position import PositionTable, rotary_tables, sinusoids
from groundup.model.rope_scaling import LinearScaling, Llama3Scaling, NTKScaling, YarnScaling


def test_sinusoids_by_hand():
    """d_model 4: channels sin(p), cos(p), sin(p / 100), cos(p / 100)."""
    expected = [math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]
    torch.testing.assert_close(sinusoids(torch.tensor([3]), 4)[0], torch.tensor(expected))


def test_sinusoids_at_a_distance_are_a_rotation():
    """The property they were chosen for: PE(p + k) is a linear function of PE(p) that depends on k only."""
    near, far = (sinusoids(torch.tensor([p, p + 5]), 16) for p in (2, 90))
    torch.testing.assert_close(near[0] @ near[1], far[0] @ far[1], rtol=1e-4, atol=1e-4)


def test_layout_rotates_as_apply_rope_does():
    x, positions = torch.randn(2, 3, 4, 8), torch.tensor([[0, 5, 9], [2, 3, 4]])
    layout = Layout(positions, tables=rotary_tables(positions, [(Rope(10_000.0), 8), (Rope(500.0), 8)]))
    torch.testing.assert_close(layout.rotate(x, Rope(500.0)), apply_rope(x, positions, 500.0))
    assert layout.rotate(x, None) is x


def test_one_row_of_tables_serves_a_batch():
    x, positions = torch.randn(5, 3, 4, 8), torch.tensor([[0, 5, 9]])
    layout = Layout(positions.expand(5, 3), tables=rotary_tables(positions, [(Rope(10_000.0), 8)]))
    torch.testing.assert_close(layout.rotate(x, Rope()), apply_rope(x, positions.expand(5, 3)))


def test_learned_positions_are_rows_and_padding_is_harmless():
    table = PositionTable(4, 3, std=1.0)
    torch.testing.assert_close(table(torch.tensor([[-1, 0, 3]]))[0, 1:], table.weight[[0, 3]])
    with pytest.raises(IndexError):
        table(torch.tensor([[4]]))


@pytest.mark.parametrize("theta", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rotation_needs_a_positive_base(theta):
    with pytest.raises(ValueError, match="theta"):
        Rope(theta)


def test_a_table_needs_a_row():
    with pytest.raises(ValueError, match="max_length=0; expected at least 1"):
        LearnedPositions(0)


def test_a_fraction_of_the_channels_turns():
    x, positions = torch.randn(2, 3, 4, 8), torch.arange(3).expand(2, 3)
    rope = Rope(100.0, fraction=0.5)
    turned = Layout(positions, tables=rotary_tables(positions, [(rope, 8)])).rotate(x, rope)
    torch.testing.assert_close(turned[..., :4], apply_rope(x[..., :4], positions, 100.0))
    assert torch.equal(turned[..., 4:], x[..., 4:])


@pytest.mark.parametrize(("channels", "fraction", "word"), [(7, 1.0, "odd"), (8, 0.4, "odd"), (8, 0.1, "nothing")])
def test_channels_that_make_no_pairs(channels, fraction, word):
    with pytest.raises(ValueError, match=rf"d_head={channels}.* is {word}, .* pairs; use"):
        Rope(fraction=fraction).check(channels, "d_head")


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_fraction_is_a_share(fraction):
    with pytest.raises(ValueError, match="fraction"):
        Rope(fraction=fraction)


SCALINGS = [None, LinearScaling(4.0), NTKScaling(4.0), Llama3Scaling(4.0, original_context=16), YarnScaling(4.0, 16)]
RELATIVE = {f"rope {scaling}": {"rope": Rope(100.0, scaling=scaling)} for scaling in SCALINGS} | {
    "rope of half": {"rope": Rope(100.0, fraction=0.5)},
    "alibi": {"rope": None, "alibi": True},
    "nope": {"rope": None},
}
ABSOLUTE = {"learned": LearnedPositions(64), "sinusoidal": SinusoidalPositions(64)}


def moved(positions=None, **mixer):
    """Logits of the same tokens at positions 0, 1, 2, ... and 50 further on."""
    block = BlockConfig(AttentionConfig(2, 1, 8, **mixer), MLPConfig(24))
    model = Transformer(ModelConfig(20, 16, 2, (block,), 16, positions=positions)).eval()
    tokens, at = torch.arange(12)[None], torch.arange(12)[None]
    return model(tokens, positions=at), model(tokens, positions=at + 50), model(tokens, positions=at * 2)


@pytest.mark.parametrize("name", RELATIVE)
def test_relative_positions_are_blind_to_where_a_text_begins(name):
    here, there, apart = moved(**RELATIVE[name])
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)
    assert torch.allclose(apart, here, atol=1e-4) is (name == "nope"), "and see distance, but for none at all"


@pytest.mark.parametrize("name", ABSOLUTE)
def test_absolute_positions_are_not(name):
    here, there, _ = moved(ABSOLUTE[name], rope=None)
    assert not torch.allclose(there, here, atol=1e-2)
