"""What the operations of a decode step are told, as records that compiled code reads."""

import numpy as np

EMBED, GATHER, NORM, ROUND, PRODUCT, REMEMBER, ATTEND = range(7)
FP32, BF16, INT8, INT4 = range(4)
FORMATS = {"fp32": FP32, "bf16": BF16, "int8": INT8, "int4": INT4}
WRITE, ADD = 0, 1
PRIVATE_ROWS = 4
"""Up to so many rows are rounded by every thread for itself, which is quicker than to wait for one that does it."""
NO_WINDOW = 1 << 40

_ADDRESSES = ("gain", "norm_bias", "weights", "scales", "bias", "up_bias", "table", "position_table", "cos", "sin")
_COUNTS = (
    "kind", "wanted", "mode", "norm_kind", "format", "groups", "outputs", "block_bytes", "scale_bytes", "activation",
    "gated", "heads", "kv_heads", "d_head", "half", "whole_norm", "in_bf16", "window", "sink_tokens", "page_size",
    "part_heads", "next_product",
)  # fmt: skip
_OF_ATTENTION = ("q_gain", "k_gain", "keys", "values", "slopes", "sinks", "scores", "add_values", "fetch")
_ROWS = ("source", "source_width", "width", "target", "target_width")

OPERATION = np.dtype(
    [(name, np.int64) for name in (*_COUNTS, *_ROWS, *_ADDRESSES, *_OF_ATTENTION)]
    + [(name, np.float32) for name in ("eps", "scale", "softcap")]
)
"""kind: one of the above; the rest is zero where the operation has no use for it.

wanted          1: on the rows whose logits are wanted, 0: on all rows
source, target  addresses of float32 rows that are `source_width` and `target_width` numbers apart; `width` are read
mode            WRITE to the target or ADD to what is there
groups          of 32 inputs, the last filled up with zeros; `outputs`: of a product (per gate, where it is `gated`)
half            pairs of channels that a rotary embedding turns; `cos` and `sin` have as many per position
whole_norm      1: QK-norm over all heads together; `q_gain` 0: none

part_heads      query heads that `scores` and `add_values` take at once; both, and `fetch`, are from `heads`

next_product    number of the first product after this operation, of the last product in its own case

All others that are not counts are addresses: of float32 vectors and tables, of packed weights, of pages.
"""
