"""Messages and updates by hand, and what a model that is cut over devices looks like on one of them."""

import pytest

from groundup import presets
from groundup.accounting import count_parameters
from groundup.accounting.devices import Measured
from groundup.accounting.placement import (
    Placement,
    can_cut,
    communication_seconds,
    cut,
    placements,
    update_seconds,
)

# A link of 1 GB/s and 10 us.
LINK = Measured(flops=1e14, bandwidth=1e12, link_bandwidth=1e9, link_latency=1e-5, source="made up")
MODEL = presets.llama(vocab_size=512, d_model=64, num_layers=3, num_heads=4, num_kv_heads=2, d_head=16,
                      context_length=128)  # fmt: skip


@pytest.mark.parametrize(
    ("way", "recompute", "seconds"),
    [
        (Placement(1, 1, "none"), False, 0.0),
        # 4 bytes x 1 M gradients x 2 x 3/4, in one message
        (Placement(1, 4, "none"), False, 6e6 / 1e9 + 1e-5),
        # 8 bytes x 1 M x 3/4 in each of 5 passes, three messages for each of 3 layers
        (Placement(1, 4, "full"), False, 5 * (6e6 / 1e9 + 9e-5)),
        # 4 x 3 messages a pass of 2 bytes x 2 rows x 128 tokens x 64 channels, x 2 x 3/4
        (Placement(4, 1, "none"), False, 5 * 12 * (2 * 2 * 128 * 64 * 1.5 / 1e9 + 1e-5)),
        (Placement(4, 1, "none"), True, 5 * 15 * (2 * 2 * 128 * 64 * 1.5 / 1e9 + 1e-5)),
        # both at once: 2 x 1/2 of the messages, and gradients over two
        (Placement(2, 2, "none"), False, 5 * 12 * (2 * 2 * 128 * 64 / 1e9 + 1e-5) + 4e6 / 1e9 + 1e-5),
    ],
)
def test_messages_by_hand(way, recompute, seconds):
    found = communication_seconds(way, MODEL, 1_000_000, 2, 5, recompute, LINK)
    assert found == pytest.approx(seconds)


def test_without_a_measured_link_nothing_is_made_up():
    with pytest.raises(ValueError, match="needs a measured link"):
        communication_seconds(Placement(1, 2, "none"), MODEL, 1, 1, 1, False, Measured(1.0, 1.0, None, None, ""))


def test_the_update_goes_through_what_a_device_keeps():
    assert update_seconds(Placement(1, 4, "none"), 1_000_000, 28e6) == 1.0
    assert update_seconds(Placement(1, 4, "full"), 1_000_000, 28e6) == 0.25
    assert update_seconds(Placement(4, 1, "full"), 1_000_000, 28e6) == 1.0


def test_a_cut_model_has_its_share_of_the_blocks_and_the_whole_of_the_rest():
    whole, half = count_parameters(MODEL), count_parameters(cut(MODEL, 2))
    norms = 64 * (2 * MODEL.num_layers)
    assert half.blocks - norms == (whole.blocks - norms) / 2
    assert whole.total - whole.blocks == half.total - half.blocks


def test_only_what_divides_is_cut():
    assert [way for way in placements(MODEL, 4) if way.tensor > 1] == [
        Placement(2, 2, "none"),
        Placement(2, 2, "full"),
    ]  # two KV heads cannot be shared by four
    assert list(placements(MODEL, 1)) == [Placement(1, 1, "none")]
    assert not can_cut(presets.published("olmoe-1b-7b"), 2)
