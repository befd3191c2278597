"""The recurrence of the LSTM: what depends on the token before, which no reordering makes parallel."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from groundup.kernels._compiler import untraced
from groundup.kernels._dispatch import op

Hidden = Float[Tensor, "batch d_hidden"]


@op
def lstm(
    gates: Float[Tensor, "batch seq d_gates"],
    weight: Float[Tensor, "d_gates d_hidden"],
    hidden: Hidden,
    cell: Hidden,
    resets: Bool[Tensor, "batch seq"] | None = None,
    real: Bool[Tensor, "batch seq"] | None = None,
) -> tuple[Float[Tensor, "batch seq d_hidden"], Hidden, Hidden]:
    r"""c_t = f * c_{t-1} + i * g and h_t = o * tanh(c_t), with (i, f, g, o) = gates_t + weight h_{t-1} squashed.

    i, f and o go through a sigmoid and g through tanh; `gates` is the part that the inputs alone decide, bias
    included. A token with `resets` starts from zeros; one that is not `real` leaves h and c as they are. Products
    are in the type of `gates`, the cell in the type that it comes in. Returns all h, then the last h and c.

    Hochreiter & Schmidhuber 1997; the forget gate is of Gers et al. 2000. Order of gates as in torch.nn.LSTM.
    """
    return _by_token(gates, weight.to(gates.dtype), hidden, cell, resets, real)


@untraced  # a compiler would unroll it, token by token
def _by_token(
    gates: Float[Tensor, "batch seq d_gates"],
    weight: Float[Tensor, "d_gates d_hidden"],
    hidden: Hidden,
    cell: Hidden,
    resets: Bool[Tensor, "batch seq"] | None,
    real: Bool[Tensor, "batch seq"] | None,
) -> tuple[Float[Tensor, "batch seq d_hidden"], Hidden, Hidden]:
    outs = []
    for t, gates_t in enumerate(gates.unbind(1)):
        if resets is not None:
            hidden, cell = (x.masked_fill(resets[:, t, None], 0.0) for x in (hidden, cell))
        i, f, g, o = (gates_t + hidden.to(gates.dtype) @ weight.T).to(cell.dtype).chunk(4, -1)
        new_cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        new_hidden = o.sigmoid() * new_cell.tanh()
        if real is not None:
            keep = ~real[:, t, None]
            new_cell, new_hidden = torch.where(keep, cell, new_cell), torch.where(keep, hidden, new_hidden)
        hidden, cell = new_hidden, new_cell
        outs.append(hidden)
    return torch.stack(outs, 1).to(gates.dtype), hidden, cell
