"""What the operations of a decode step are told, as records that compiled code reads."""

import numpy as np

EMBED, GATHER, NORM, ROUND, PRODUCT, REMEMBER, REMEMBER_LATENT, ATTEND, CONVOLVE, RECUR, GATE, LARGEST = range(12)
FP32, BF16, INT8, INT4 = range(4)
FORMATS = {"fp32": FP32, "bf16": BF16, "int8": INT8, "int4": INT4}
WRITE, ADD = 0, 1
PRIVATE_ROWS = 4
"""Up to so many rows are rounded by every thread for itself, which is quicker than to wait for one that does it."""
NO_WINDOW = 1 << 40
PIECES = 4
"""In which a row of logits is searched for the largest."""
ADDING, CORRECTING = range(2)
"""Rules of a recurrence: the gated linear one, and the gated delta rule."""
FIXED_DECAY, RATE_DECAY, HEAD_DECAY, CHANNEL_DECAY = range(4)

_ADDRESSES = ("gain", "norm_bias", "weights", "scales", "bias", "up_bias", "table", "position_table", "cos", "sin")
_COUNTS = (
    "kind", "wanted", "mode", "norm_kind", "format", "groups", "outputs", "block_bytes", "scale_bytes", "activation",
    "gated", "heads", "kv_heads", "d_head", "half", "whole_norm", "in_bf16", "window", "sink_tokens", "page_size",
    "part_heads", "remembers", "next_product", "diagonal", "source_step", "d_rope", "second_width",
)  # fmt: skip
_OF_ATTENTION = ("q_gain", "k_gain", "keys", "values", "slopes", "sinks", "scores", "add_values", "fetch")
_OF_LATENTS = ("second", "rope_keys", "rope_scores")
_OF_RECURRENCES = (
    "state", "rates", "rate_bias", "skip", "d_value", "kernel", "rule", "decay", "elu",
    "q_at", "k_at", "v_at", "beta_at", "norm_groups", "gate_first",
)  # fmt: skip
_ROWS = ("source", "source_width", "width", "target", "target_width")

OPERATION = np.dtype(
    [(name, np.int64) for name in (*_COUNTS, *_ROWS, *_ADDRESSES, *_OF_ATTENTION, *_OF_LATENTS, *_OF_RECURRENCES)]
    + [(name, np.float32) for name in ("eps", "scale", "softcap")]
)
"""kind: one of the above; the rest is zero where the operation has no use for it.

wanted          0: on all rows, 1: on those whose logits are wanted, 2: on those whose most likely token is
source, target  addresses of float32 rows that are `source_width` and `target_width` numbers apart; `width` are read
mode            WRITE to the target or ADD to what is there
groups          of 32 inputs, the last filled up with zeros; `outputs`: of a product (per gate, where it is `gated`)
half            pairs of channels that a rotary embedding turns; `cos` and `sin` have as many per position
whole_norm      1: QK-norm over all heads together; `q_gain` 0: none

part_heads      query heads that `scores` and `add_values` take at once; both, and `fetch`, are from `heads`
remembers       1: where no row sees another one, ATTEND does for its heads what REMEMBER does, which is left out

diagonal        matrices of a product, each of which reads its own part of a row: the next one's begins `source_step`
                numbers behind; `outputs` are then of one matrix, and `width` and `groups` of its part

d_rope          channels of the rotary key that all heads share, and of each head's query for it, in latent attention;
                `rope_keys`: where they are kept (0: none); `rope_scores` writes their scores, and `scores` adds to them
second          rows of `second_width` beside the source: of latent attention each head's query, d_nope and then d_rope
                channels, `source_step` in all; of a recurrence what its decays are made of; of a gate its inputs

state           a recurrence's, by row of the page tables: (heads, d_head, d_value), or (kernel - 1, width) inputs of a
                convolution, whose weights are (kernel, width)
rule, decay     see above; `rates` and `rate_bias`: of each head, or the decays themselves where they are fixed
q_at, ...       channels of the source from which on queries are, keys, values, and shares of a correction; queries and
                keys are of `kv_heads`
skip            of each head, for values past the state; 0: none, and values are not scaled by the step either
elu             1: queries and keys go through elu(x) + 1, and outputs are divided by the sum of their weights
norm_groups     of a row, each with its own norm; `gate_first`: the gate comes before it

next_product    number of the first product after this operation, of the last product in its own case

All others that are not counts are addresses: of float32 vectors and tables, of packed weights, of pages.
"""

IN_STEP = (
    "threads", "board", "operations", "count", "tiles", "tile_formats", "tile_sizes", "most_rows", "rows", "is_apart",
    "wanted", "searched", "tokens", "positions", "table_rows", "gathered", "tables", "tables_rows", "tables_width",
    "found", "area", "record_bytes", "values_bytes", "work", "work_size",
)  # fmt: skip
STEP = np.dtype([(name, np.int64) for name in IN_STEP])
"""What a whole step is told: one record, as each argument of a compiled function costs the caller some time.

operations      address of `count` records; tiles: of int64 (tile_formats, tile_sizes), see `tile`
rows            of the step, at most `most_rows`; `wanted` of them need logits, and of the first `searched` of these the
                most likely token is searched; is_apart: 1 where no two of them are of one sequence
tokens          address of a token for each row, with `positions` and `table_rows`: row i is the token tokens[i] at
                positions[i] of the sequence with page table tables[table_rows[i]]; `gathered`: the rows that are wanted
tables          address of page tables (tables_rows, tables_width); found: of int64 (rows, PIECES), see `largest`
area            address of rounded rows of `record_bytes` each, which begin with values of up to `values_bytes`: first
                `most_rows` and a tile that all threads share, then PRIVATE_ROWS for each thread
work            address of `work_size` float32 for each thread for itself
"""
