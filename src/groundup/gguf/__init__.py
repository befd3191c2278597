"""GGUF, the model file of llama.cpp: metadata, and tensors that may be quantised in blocks. NumPy only, no torch."""

from groundup.gguf.blocks import KINDS, Kind, dequantise, quantise
from groundup.gguf.metadata import Header, read_header
from groundup.gguf.reading import GGUFFile, TensorInfo
from groundup.gguf.writing import write_gguf

__all__ = ["GGUFFile", "Header", "KINDS", "Kind", "TensorInfo", "dequantise", "quantise", "read_header", "write_gguf"]
