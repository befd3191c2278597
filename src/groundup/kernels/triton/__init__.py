"""Twins of the operations of `kernels` for NVIDIA GPUs, in Triton. Each file is found by its path; see `_dispatch`."""
