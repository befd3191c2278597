"""Shares of FLOPs against arithmetic by hand, over sizes and contexts."""

import pytest

from groundup import presets
from groundup.accounting import forward_flops
from groundup.profiling import flop_shares
from groundup.profiling.shares import PARTS
from groundup.report.shares import share_svg, share_table, write_shares

SIZES = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("context", [1024, 4096, 16_384])
def test_gpt2s_shares_equal_a_hand_computation(size, context):
    """Per token and layer: 8 D^2 in projections, 16 D^2 in two matrices of 4 D, and 4 D for each visible token."""
    layers, d, heads = SIZES[size]
    pairs = context * (context + 1) // 2
    by_hand = {
        "feed-forward": layers * context * (2 * d * 4 * d + 2 * 4 * d * d + 4 * 4 * d),  # and four FLOPs a GELU
        "attention projections": layers * context * 4 * 2 * d * d,
        "attention": layers * (2 * 2 * pairs * d + 5 * pairs * heads),  # and five a score for the softmax
        "head and loss": 2 * context * d * 50_257,
        "norms": (2 * layers + 1) * 7 * context * d,
        "residual": 2 * layers * context * d,
    }
    counted = flop_shares(presets.gpt2(size), context)
    assert counted.flops == by_hand
    assert counted.share("attention") == by_hand["attention"] / sum(by_hand.values())


def test_attention_overtakes_the_feed_forward_layers_in_gpt2_xl_between_8k_and_16k():
    def ratio(context):
        flops = flop_shares(presets.gpt2("xl"), context).flops
        return flops["attention"] / flops["feed-forward"]

    # 4 D (T + 1) / 2 against 16 D^2: at T = 8 D = 12,800, a little before by the softmax.
    assert ratio(8192) < ratio(12_000) < 1 < ratio(12_800) < ratio(16_384)


def test_parts_are_the_whole_ledger_and_a_square_is_counted_when_asked():
    config = presets.published("qwen-2.5-0.5b")
    shares = flop_shares(config, 64, causal=False)
    assert sum(shares.share(part) for part in PARTS) == pytest.approx(1)
    elementwise_free = forward_flops(config, 64, causal=False)
    assert elementwise_free < shares.total < 1.02 * elementwise_free
    assert shares.flops["attention"] > flop_shares(config, 64).flops["attention"]


def test_experts_and_recurrences_have_their_parts():
    for name in ("olmoe-1b-7b", "mamba-2-130m"):
        assert flop_shares(presets.published(name), 128).total > forward_flops(presets.published(name), 128)


def test_no_context_is_refused():
    with pytest.raises(ValueError, match="context_length=0; expected at least 1"):
        flop_shares(presets.gpt2(), 0)


def test_the_page_shows_every_part_of_every_point(tmp_path):
    points = [flop_shares(presets.gpt2(size), 1024, label=f"gpt2 {size}") for size in ("small", "xl")]
    table = share_table(points, "model")
    assert table.rows[0][:3] == ["gpt2 small", "124,439,808", "1,024"] and table.rows[1][4] == "60.11%"
    drawing = share_svg(points)
    assert "60%" in drawing and "feed-forward" in drawing and drawing == share_svg(points)
    text = write_shares(tmp_path / "flops.html", points, "model").read_text()
    assert "gpt2 xl" in text and "http" not in text.replace("http-equiv", "") and "<script" not in text
