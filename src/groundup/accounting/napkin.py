"""Arithmetic for the back of an envelope: how long a run takes, and how large a model fits.

Both are products of a few round numbers, to be right within a factor of two before anything is planned in earnest
(`plan.py` and `memory.py` are for that).
"""

H100_BF16_FLOPS = 989.5e12
"""FLOPs per second of an H100 SXM in bf16 without sparsity: half of what its data sheet prints with it."""

H100_BYTES = 80e9

ADAMW_BYTES = 16
"""Per parameter: 4 each for fp32 weights, gradients and both of AdamW's moments. Activations are not in it."""

_DAY_SECONDS = 86_400


def training_days(
    parameters: float, tokens: float, devices: int, *, device_flops: float = H100_BF16_FLOPS, mfu: float = 0.5
) -> float:
    """Days that 6 N D floating-point operations take on so many devices at this share of their peak (0 to 1).

    70 B parameters, 15 T tokens, 1,024 H100s at an MFU of 0.5:

    >>> round(training_days(70e9, 15e12, 1024))
    144
    """
    _check(parameters=parameters, tokens=tokens, devices=devices, device_flops=device_flops, mfu=mfu)
    if mfu > 1:
        raise ValueError(f"napkin: mfu={mfu}; expected a share of the peak, up to 1")
    return 6 * parameters * tokens / (devices * device_flops * mfu) / _DAY_SECONDS


def largest_model(devices: int, *, device_bytes: float = H100_BYTES, bytes_per_parameter: float = ADAMW_BYTES) -> float:
    """Parameters whose training state fills these devices, sharded over them, without any activations.

    Eight H100s with AdamW in fp32:

    >>> largest_model(8) / 1e9
    40.0
    """
    _check(devices=devices, device_bytes=device_bytes, bytes_per_parameter=bytes_per_parameter)
    return devices * device_bytes / bytes_per_parameter


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"napkin: {name}={value}; expected a positive number")
