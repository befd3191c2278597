"""What every source of training data gives, and how it gets to the device."""

import torch
from torch import Tensor

#: Tensors of one training step, each `(batch, context_length + 1)`:
#:
#: tokens     token ids, int64. The model reads columns `[:-1]` and predicts columns `[1:]`.
#: mask       optional weight of predicting the token in this column, float32; column 0 is never predicted.
#: segments   optional number of the document inside the row; attention stays inside one number.
#: positions  optional position of the token inside its document.
#: source     optional text `(batch, source length)` that `tokens` are the answer to, for an encoder-decoder, with
#:            `source_positions` (-1 at padding) and `source_segments` of the same shape.
#: top_ids    optional `(batch, context_length, k)` with `top_log_probs`: what a teacher said (compression/).
#: seed       optional number of each row `(batch,)`, for objectives that draw something for it.
Batch = dict[str, Tensor]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`. For CUDA the copy goes through pinned memory, and does not wait for the GPU."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
