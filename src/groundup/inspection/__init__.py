"""Looking into things: a tensor's memory, number types, checkpoints, model files and runs, without loading a model."""

from groundup.inspection.numbers import NumberType, number_types
from groundup.inspection.stored import Stored, StoredTensor, inspect_path
from groundup.inspection.strides import Memory, Step, layout_of, trace

__all__ = [
    "Memory", "NumberType", "Step", "Stored", "StoredTensor", "inspect_path", "layout_of", "number_types", "trace",
]  # fmt: skip
