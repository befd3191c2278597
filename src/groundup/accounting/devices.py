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

    `fp8` and `bf16` are None where its matrix units have no such type. `sparse` is the rate in the training type that
    the document prints with 2:4 sparsity, as printed; None where there is no such mode.
    `link` is to other devices of the same machine, both directions together, as data sheets count; None for PCIe only.
    `source` is the document that every figure is from, but for those that `doubt` names.
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
    sparse: float | None = None
    doubt: str = ""

    @property
    def peak_flops(self) -> float:
        """The dense rate in the type that training uses here: bf16 where it has it, else fp16."""
        return self.bf16 or self.fp16

    def rate(self, dtype: str) -> float | None:
        """The dense rate that is promised for `fp32`, `fp16`, `bf16` or `fp8`; None for others, and where unknown."""
        return {"fp32": self.fp32, "fp16": self.fp16, "bf16": self.bf16, "fp8": self.fp8}.get(dtype)

    @property
    def ridge(self) -> float:
        """FLOPs per byte above which matmuls are bound by the rate and not by the memory."""
        return self.peak_flops / self.bandwidth


@dataclass(frozen=True)
class Measured:
    """What `groundup doctor` found of such devices in use: per device FLOP/s in the training type and bytes per second
    of its memory, and per message the link's latency and the bytes per second that each device sends over it. None is
    what was not measured. `source` is for people."""

    flops: float
    bandwidth: float
    link_bandwidth: float | None
    link_latency: float | None
    source: str


@dataclass(frozen=True)
class Cluster:
    """Some devices of one kind; `measured` where they are those of a machine that was measured."""

    device: Device
    count: int
    measured: Measured | None = None

    @property
    def device_flops(self) -> float:
        """The rate of one: measured, else promised."""
        return self.measured.flops if self.measured else self.device.peak_flops

    @property
    def peak_flops(self) -> float:
        """Of all together."""
        return self.count * self.device_flops

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
    fp8: float | None, sparse: float | None, link: float | None, watts: float, source: str, doubt: str = "",
) -> Device:  # fmt: skip
    """Rates in TFLOP/s, memory in GB, bandwidths in GB/s: the units of data sheets."""
    return Device(
        name, gigabytes * GIGA, gigabytes_per_s * GIGA, fp32 * TERA, fp16 * TERA, bf16 and bf16 * TERA,
        fp8 and fp8 * TERA, link and link * GIGA, watts, source, sparse and sparse * TERA, doubt,
    )  # fmt: skip


_VOLTA = "NVIDIA V100 data sheet, January 2020"
_AMPERE = "NVIDIA A100 data sheet, June 2021"
_HOPPER = "NVIDIA H100 data sheet, 2023; printed with sparsity, halved here"
_H200 = "NVIDIA H200 data sheet, 2024; printed with sparsity, halved here"

# name, GB, GB/s, then TFLOP/s: fp32, fp16, bf16, fp8 dense, and fp16/bf16 as printed with sparsity; link, W, source.
DEVICES = {
    "v100-16gb": _device("V100 SXM2 16 GB", 16, 900, 15.7, 125, None, None, None, 300, 300, _VOLTA),
    "v100": _device("V100 SXM2 32 GB", 32, 900, 15.7, 125, None, None, None, 300, 300, _VOLTA),
    "t4": _device("T4", 16, 320, 8.1, 65, None, None, None, None, 70, "NVIDIA T4 data sheet, March 2019",
                  "bandwidth: the data sheet prints 300 GB/s, later pages 320+; 256 bits at 10 Gbit/s are 320"),
    "a100-40gb": _device("A100 SXM 40 GB", 40, 1_555, 19.5, 312, 312, None, 624, 600, 400, _AMPERE),
    "a100": _device("A100 SXM 80 GB", 80, 2_039, 19.5, 312, 312, None, 624, 600, 400, _AMPERE),
    "a100-pcie-40gb": _device("A100 PCIe 40 GB", 40, 1_555, 19.5, 312, 312, None, 624, 600, 250, _AMPERE),
    "a100-pcie": _device("A100 PCIe 80 GB", 80, 1_935, 19.5, 312, 312, None, 624, 600, 300, _AMPERE),
    "a10": _device("A10", 24, 600, 31.2, 125, 125, None, 250, None, 150, "NVIDIA A10 data sheet, 2021"),
    "a10g": _device("A10G", 24, 600, 35, 70, 70, None, 140, None, 300, "NVIDIA A10G data sheet for AWS, 2022",
                    "watts: the limit of the board; a machine's owner may set it lower"),
    "a6000": _device("RTX A6000", 48, 768, 38.7, 154.8, 154.8, None, 309.7, 112.5, 300,
                     "NVIDIA RTX A6000 data sheet, 2021; printed with sparsity, halved here"),
    "l4": _device("L4", 24, 300, 30.3, 121, 121, 242.5, 242, None, 72,
                  "NVIDIA L4 data sheet, 2023; printed with sparsity, halved here"),
    "l40": _device("L40", 48, 864, 90.5, 181.05, 181.05, 362, 362.1, None, 300, "NVIDIA L40 data sheet, 2022"),
    "l40s": _device("L40S", 48, 864, 91.6, 362.05, 362.05, 733, 733, None, 350, "NVIDIA L40S data sheet, 2023",
                    "sparse: 733 is not twice 362.05; the sheet rounds its rates apart, and prints both"),
    "h100": _device("H100 SXM", 80, 3_350, 67, 989.5, 989.5, 1_979, 1_979, 900, 700, _HOPPER),
    "h100-pcie": _device("H100 PCIe", 80, 2_000, 51, 756.5, 756.5, 1_513, 1_513, 600, 350, _HOPPER),
    "h100-nvl": _device("H100 NVL", 94, 3_900, 60, 835.5, 835.5, 1_670.5, 1_671, 600, 400,
                        "NVIDIA H100 data sheet, 2024; printed with sparsity, halved here"),
    "h200": _device("H200 SXM", 141, 4_800, 67, 989.5, 989.5, 1_979, 1_979, 900, 700, _H200),
    "h200-nvl": _device("H200 NVL", 141, 4_800, 60, 835.5, 835.5, 1_670.5, 1_671, 900, 600, _H200),
    "b200": _device("B200", 180, 8_000, 75, 2_250, 2_250, 4_500, 4_500, 1_800, 1_000,
                    "NVIDIA DGX B200 and HGX B200 data sheets, 2024, for 8 GPUs; an eighth, without sparsity a half",
                    "memory: early sheets print 192 GB a GPU; fp32: 75 to 80; watts: the board's, as it is mounted"),
    "rtx3090": _device("GeForce RTX 3090", 24, 936, 35.6, 71, 71, None, 142, 112.5, 350,
                       "NVIDIA Ampere GA102 whitepaper v2, 2021, table 9"),
    "rtx4090": _device("GeForce RTX 4090", 24, 1_008, 82.6, 165.2, 165.2, 330.3, 330.4, None, 450,
                       "NVIDIA Ada whitepaper v2, 2022, table 2"),
    "rtx5090": _device("GeForce RTX 5090", 32, 1_792, 104.8, 209.5, 209.5, 419, 419, None, 575,
                       "NVIDIA RTX Blackwell whitepaper, 2025"),
    "mi300x": _device("MI300X", 192, 5_300, 163.4, 1_307.4, 1_307.4, 2_614.9, 2_614.9, 896, 750,
                      "AMD MI300X data sheet, 2023"),
    "mi325x": _device("MI325X", 256, 6_000, 163.4, 1_307.4, 1_307.4, 2_614.9, 2_614.9, 896, 1_000,
                      "AMD MI325X data sheet, 2024"),
}  # fmt: skip
"""By the name that `cluster` reads. The rates of GeForce cards are those with fp32 sums; with fp16 sums they are twice.

Not here: TPUs, whose maker prints bf16, int8 and bandwidth, but neither fp32 rates nor watts for most of them.
"""

# What a driver calls them. The whole name, so that a variant (Ti, D, Laptop, a slice of a GPU) is no other device.
_REPORTED = {
    r"V100-SXM2-16GB": "v100-16gb", r"V100-SXM2-32GB": "v100", r"T4": "t4", r"A100-SXM4-40GB": "a100-40gb",
    r"A100-SXM4-80GB": "a100", r"A100-PCI[Ee]-40GB": "a100-pcie-40gb", r"A100 80GB PCIe": "a100-pcie", r"A10": "a10",
    r"A10G": "a10g", r"RTX A6000": "a6000", r"L4": "l4", r"L40": "l40", r"L40S": "l40s", r"H100 80GB HBM3": "h100",
    r"H100 PCIe": "h100-pcie", r"H100 NVL": "h100-nvl", r"H200": "h200", r"H200 NVL": "h200-nvl", r"B200": "b200",
    r"GeForce RTX 3090": "rtx3090", r"GeForce RTX 4090": "rtx4090", r"GeForce RTX 5090": "rtx5090",
    r"Instinct MI300X(?: OAM)?": "mi300x", r"Instinct MI325X(?: OAM)?": "mi325x",
}  # fmt: skip


def recognise(reported: str) -> Device | None:
    """The device that a driver's name means; None for one that is not in the table, such as any CPU.

    >>> recognise("NVIDIA H100 80GB HBM3").name
    'H100 SXM'
    >>> recognise("NVIDIA GeForce RTX 4090 D") is None
    True
    """
    name = re.sub(r"^(NVIDIA|Tesla|AMD)\s+", "", re.sub(r"^NVIDIA\s+(?=Tesla)", "", reported.strip()))
    return next((DEVICES[key] for words, key in _REPORTED.items() if re.fullmatch(words, name)), None)


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
