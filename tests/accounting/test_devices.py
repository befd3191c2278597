"""The table of devices: what must hold between its figures, and the words that name them."""

import pytest

from groundup.accounting.devices import _REPORTED, DEVICES, cluster, recognise
from groundup.accounting.napkin import H100_BF16_FLOPS, H100_BYTES, largest_model, training_days


def test_the_tables_figures_are_dense():
    """1,979 TFLOP/s, as printed for an H100 in bf16, is with sparsity; the napkin's figure is the same table's."""
    h100 = DEVICES["h100"]
    assert h100.sparse == 1979e12
    assert h100.peak_flops == H100_BF16_FLOPS
    assert h100.memory_bytes == H100_BYTES
    assert DEVICES["a100"].sparse == 624e12


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_what_must_hold_between_figures(name):
    device = DEVICES[name]
    assert device.source
    assert device.fp32 < device.fp16  # matrix units against plain ones
    assert device.bf16 in (None, device.fp16)
    assert device.fp8 is None or device.fp8 == pytest.approx(2 * device.fp16, rel=0.02)
    assert 50 < device.ridge < 450
    assert device.watts >= 70


# TFLOP/s in fp16 or bf16, dense and with sparsity, as the documents print them: both, or one and a footnote that says
# with sparsity (then the dense one is a half).
PRINTED = {
    "a100": (312, 624), "a100-40gb": (312, 624), "a100-pcie": (312, 624), "a100-pcie-40gb": (312, 624),
    "a10": (125, 250), "a10g": (70, 140), "a6000": (None, 309.7), "l4": (None, 242), "l40": (181.05, 362.1),
    "l40s": (362.05, 733), "h100": (None, 1979), "h100-pcie": (None, 1513), "h100-nvl": (None, 1671),
    "h200": (None, 1979), "h200-nvl": (None, 1671), "b200": (None, 4500), "rtx3090": (71, 142),
    "rtx4090": (165.2, 330.4), "rtx5090": (209.5, 419), "mi300x": (1307.4, 2614.9), "mi325x": (1307.4, 2614.9),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRINTED))
def test_dense_is_half_of_what_is_printed_with_sparsity(name):
    dense, sparse = PRINTED[name]
    device = DEVICES[name]
    assert device.sparse == pytest.approx(sparse * 1e12)
    assert device.peak_flops == pytest.approx((dense or sparse / 2) * 1e12, rel=1e-3)
    if name != "l40s":  # whose sheet does not print twice the one as the other, and says so
        assert 2 * device.peak_flops == pytest.approx(device.sparse, rel=1e-3)


def test_the_others_have_no_sparsity():
    assert {name for name, device in DEVICES.items() if device.sparse is None} == set(DEVICES) - set(PRINTED)
    assert set(DEVICES) - set(PRINTED) == {"v100", "v100-16gb", "t4"}


def test_memory_and_bandwidth_by_hand():
    """Bus width in bits x rate per pin in Gbit/s / 8, of cards whose memory chips are known."""
    chips = {"t4": (256, 10), "rtx3090": (384, 19.5), "rtx4090": (384, 21), "rtx5090": (512, 28), "l40s": (384, 18),
             "l4": (192, 12.5), "a10": (384, 12.5), "a6000": (384, 16)}  # fmt: skip
    for name, (bits, gigabits) in chips.items():
        assert DEVICES[name].bandwidth == pytest.approx(bits * gigabits / 8 * 1e9)


def test_rates_of_a_type():
    h100 = DEVICES["h100"]
    assert [h100.rate(name) for name in ("fp32", "bf16", "fp8", "int8")] == [67e12, 989.5e12, 1979e12, None]
    assert DEVICES["v100"].rate("bf16") is None


def test_every_device_has_a_name_that_a_driver_reports():
    assert sorted(_REPORTED.values()) == sorted(DEVICES)


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"), ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"), ("NVIDIA Tesla V100-SXM2-32GB", "v100"), ("NVIDIA A10G", "a10g"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"), ("NVIDIA L40S", "l40s"), ("AMD Instinct MI300X", "mi300x"),
    ],
)  # fmt: skip
def test_a_drivers_name_is_recognised(reported, name):
    assert recognise(reported) is DEVICES[name]


@pytest.mark.parametrize(
    "reported",
    ["NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
     "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A100-SXM4-80GB MIG 7g.80gb", "AMD EPYC (2 cores)", "", "NVIDIA",
     "NVIDIA GH200 480GB", "Intel(R) Xeon(R) (4 cores)"],
)  # fmt: skip
def test_a_variant_is_no_other_device(reported):
    assert recognise(reported) is None


def test_devices_without_bf16_train_in_fp16():
    assert DEVICES["v100"].peak_flops == 125e12
    assert DEVICES["v100"].sparse is None


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
