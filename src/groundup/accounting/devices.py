"""What accelerators promise: matmul rates, memory and links, each with the document that says so.

Rates are dense. Data sheets like to print the rate with 2:4 structured sparsity, which is twice as high and which no
language model's training reaches: dividing by it would halve every MFU. It is kept apart, for recognising it.

These are promises. What a machine really does is measured by `hardware.probe`, and both are shown.
"""

import re
from dataclasses import dataclass

from groundup.config import nearest

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Device:
    """One accelerator. Rates are FLOP/s of dense matmuls with fp32 sums, bandwidths bytes per second.

    `fp8` and `bf16` are None where its matrix units have no such type, `sparsity` where they cannot skip zeros.
    `link` is to other devices of the same machine, both directions together, as data sheets count; None for PCIe only.
    """

    name: str
    memory_bytes: float
    bandwidth: float
    fp32: float
    fp16: float
    bf16: float | None
    fp8: float | None
    link: float | None
    watts: float
    source: str
    sparsity: float | None = 2.0

    @property
    def peak_flops(self) -> float:
        """The dense rate in the type that training uses here: bf16 where it has it, else fp16."""
        return self.bf16 or self.fp16

    @property
    def sparse_flops(self) -> float | None:
        """What the data sheet prints in large type."""
        return None if self.sparsity is None else self.sparsity * self.peak_flops

    @property
    def ridge(self) -> float:
        """FLOPs per byte above which matmuls are bound by the rate and not by the memory."""
        return self.peak_flops / self.bandwidth


@dataclass(frozen=True)
class Cluster:
    """Some devices of one kind."""

    device: Device
    count: int

    @property
    def peak_flops(self) -> float:
        """Of all together."""
        return self.count * self.device.peak_flops

    @property
    def memory_bytes(self) -> float:
        """Of all together, when everything is sharded."""
        return self.count * self.device.memory_bytes

    @property
    def name(self) -> str:
        """For people."""
        return self.device.name if self.count == 1 else f"{self.count} x {self.device.name}"


def _device(
    name: str, gigabytes: float, gigabytes_per_s: float, fp32: float, fp16: float, bf16: float | None,
    fp8: float | None, link: float | None, watts: float, source: str, sparsity: float | None = 2.0,
) -> Device:  # fmt: skip
    """Rates in TFLOP/s, memory in GB, bandwidths in GB/s: the units of data sheets."""
    return Device(
        name, gigabytes * GIGA, gigabytes_per_s * GIGA, fp32 * TERA, fp16 * TERA, bf16 and bf16 * TERA,
        fp8 and fp8 * TERA, link and link * GIGA, watts, source, sparsity,
    )  # fmt: skip


_AMPERE = "NVIDIA A100 data sheet, June 2021"
_HOPPER = "NVIDIA H100 data sheet, 2023; printed with sparsity, halved here"

DEVICES = {
    "v100": _device("V100 SXM2 32 GB", 32, 900, 15.7, 125, None, None, 300, 300, "NVIDIA V100 data sheet, 2020", None),
    "t4": _device("T4", 16, 320, 8.1, 65, None, None, None, 70, "NVIDIA T4 data sheet, 2019", None),
    "a100-40gb": _device("A100 SXM 40 GB", 40, 1_555, 19.5, 312, 312, None, 600, 400, _AMPERE),
    "a100": _device("A100 SXM 80 GB", 80, 2_039, 19.5, 312, 312, None, 600, 400, _AMPERE),
    "a10": _device("A10", 24, 600, 31.2, 125, 125, None, None, 150, "NVIDIA A10 data sheet, 2021"),
    "l4": _device("L4", 24, 300, 30.3, 121, 121, 242.5, None, 72,
                  "NVIDIA L4 data sheet, 2023; printed with sparsity, halved here"),
    "l40s": _device("L40S", 48, 864, 91.6, 362.05, 362.05, 733, None, 350, "NVIDIA L40S data sheet, 2023"),
    "h100": _device("H100 SXM", 80, 3_350, 67, 989.5, 989.5, 1_979, 900, 700, _HOPPER),
    "h100-pcie": _device("H100 PCIe", 80, 2_000, 51, 756.5, 756.5, 1_513, 600, 350, _HOPPER),
    "h200": _device("H200 SXM", 141, 4_800, 67, 989.5, 989.5, 1_979, 900, 700,
                    "NVIDIA H200 data sheet, 2024; printed with sparsity, halved here"),
    "rtx3090": _device("GeForce RTX 3090", 24, 936, 35.6, 71, 71, None, None, 350,
                       "NVIDIA Ampere GA102 whitepaper v2, table 9"),
    "rtx4090": _device("GeForce RTX 4090", 24, 1_008, 82.6, 165.2, 165.2, 330.3, None, 450,
                       "NVIDIA Ada whitepaper v2, table 2"),
    "mi300x": _device("MI300X", 192, 5_300, 163.4, 1_307.4, 1_307.4, 2_614.9, 896, 750, "AMD MI300X data sheet, 2023"),
}  # fmt: skip
"""By the name that `cluster` reads."""


def cluster(words: str) -> Cluster:
    """Devices by name and number.

    >>> cluster("h100x8").name
    '8 x H100 SXM'
    >>> cluster("a100").count
    1

    ValueError for a name that is not in `DEVICES`, and for less than one.
    """
    name, count = words.lower(), 1
    if name not in DEVICES and (match := re.fullmatch(r"(.+?)x(\d+)", name)):
        name, count = match[1], int(match[2])
    if name not in DEVICES:
        raise ValueError(f"device {words!r} is unknown{nearest(name, DEVICES)}; several are written as h100x8")
    if count < 1:
        raise ValueError(f"device {words!r}: {count} of them; expected at least 1")
    return Cluster(DEVICES[name], count)
