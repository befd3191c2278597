"""The table of devices: what must hold between its figures, and the words that name them."""

import pytest

from groundup.accounting.devices import DEVICES, cluster
from groundup.accounting.napkin import H100_BF16_FLOPS, H100_BYTES, largest_model, training_days


def test_the_tables_figures_are_dense():
    """1,979 TFLOP/s, as printed for an H100 in bf16, is with sparsity; the napkin's figure is the same table's."""
    h100 = DEVICES["h100"]
    assert h100.sparse_flops == 1979e12
    assert h100.peak_flops == H100_BF16_FLOPS
    assert h100.memory_bytes == H100_BYTES
    assert DEVICES["a100"].sparse_flops == 624e12


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_what_must_hold_between_figures(name):
    device = DEVICES[name]
    assert device.source
    assert device.fp32 < device.fp16  # matrix units against plain ones
    assert device.bf16 in (None, device.fp16)
    assert device.fp8 is None or device.fp8 == pytest.approx(2 * device.fp16, rel=0.02)
    assert 50 < device.ridge < 450
    assert device.watts >= 70


def test_devices_without_bf16_train_in_fp16():
    assert DEVICES["v100"].peak_flops == 125e12
    assert DEVICES["v100"].sparse_flops is None


def test_several_devices():
    eight = cluster("H100x8")
    assert (eight.count, eight.name) == (8, "8 x H100 SXM")
    assert largest_model(8) == eight.memory_bytes / 16
    days = 6 * 70e9 * 15e12 / (cluster("h100x1024").peak_flops * 0.5) / 86_400
    assert days == pytest.approx(training_days(70e9, 15e12, 1024))
    assert cluster("h100-pciex2").device is DEVICES["h100-pcie"]
    assert cluster("mi300x").count == 1  # its own x is no count
    assert cluster("rtx4090x2").count == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [("h10", "'h10' is unknown.*h100"), ("h100x0", "0 of them; expected at least 1"), ("x8", "'x8' is unknown")],
)
def test_words_that_name_nothing(words, message):
    with pytest.raises(ValueError, match=message):
        cluster(words)
