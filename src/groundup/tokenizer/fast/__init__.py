"""Byte-level BPE at the speed of the machine: the same results as `bpe.py` and `pretokenize.py`, in Numba."""
