"""Model FLOPs utilization: the share of a machine's matmul rate that training turns into useful work."""


def mfu(flops_per_token: float, tokens_per_second: float, peak_flops: float) -> float:
    """FLOPs that the model needs per second over `peak_flops`, which is measured (`Machine.peak_flops`); at most 1.

    Chowdhery et al. 2022, appendix B (arXiv:2204.02311); the FLOPs are those of `training_flops_per_token`, without
    recomputation. A rate above the peak shows that the peak was measured too low, on a busy machine or at a shape that
    is not its best: then what was reached is the peak, and the answer is exactly 1.

    >>> mfu(6e9, 50.0, 1e12), mfu(6e9, 200.0, 1e12)
    (0.3, 1.0)
    """
    for name, value in (("flops_per_token", flops_per_token), ("peak_flops", peak_flops)):
        if not value > 0:
            raise ValueError(f"mfu: {name}={value}; expected a positive number")
    reached = flops_per_token * tokens_per_second
    return reached / max(peak_flops, reached)
