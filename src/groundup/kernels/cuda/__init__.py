"""Twins in CUDA C++, as an example of what Triton does for us: built on demand, and only where asked for by name."""
