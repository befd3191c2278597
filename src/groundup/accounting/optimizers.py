"""What each optimizer keeps, computes and moves: counted from the shapes of a model's parameters.

States are asked of the optimizers themselves (`state_shapes`), so that this is what they allocate. FLOPs per
parameter are those of the formulas in `optim`, a root, a sign or a division as one. Bytes are the least: every
operand read once and every result written once.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from groundup.config import nearest
from groundup.optim import OPTIMIZERS, make_optimizer
from groundup.optim.groups import split_for_muon

OptimizerName = Literal[
    "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adamw", "lion", "adafactor", "muon_adamw", "soap"
]
NUMBER_BYTES = 4
MUON_ITERATIONS = 5
SOAP_PERIOD = 10
"""Steps between two renewals of SOAP's bases, of which a step has a tenth (the class's default)."""

# Per parameter, term by term as the formulas stand.
ELEMENTWISE_FLOPS = {
    "sgd": 3,  # decay 1, step 2
    "momentum": 5,  # and the momentum 2
    "nesterov": 7,  # and the look ahead 2
    "adagrad": 8,  # decay 1, sum 2, root and eps 2, step 3
    "rmsprop": 10,  # decay 1, mean 4, root and eps 2, step 3
    "lion": 10,  # decay 1, direction 3, sign 1, step 2, momentum 3
    "adamw": 14,  # decay 1, first moment 3, second moment 4, denominator 3, step 3
    "adafactor": 16,  # decay 1, sums of rows and columns 4, V 3, root 1, update 1, its RMS 2, the tensor's 2, step 2
    "muon": 11,  # momentum 3, Nesterov 3, norm 2, decay 1, step 2
    "soap": 14,  # AdamW's
}

# Numbers per parameter: the parameter read and written, its gradient read, each whole state read and written.
MOVED = {
    "sgd": 3, "momentum": 5, "nesterov": 5, "adagrad": 5, "rmsprop": 5, "lion": 5, "adamw": 7, "adafactor": 3,
    "muon": 5, "soap": 7,
}  # fmt: skip


class Update(NamedTuple):
    """One row of an optimizer's work in one step; `bytes_moved` is a least."""

    name: str
    kind: Literal["elementwise", "matmul"]
    flops: int
    bytes_moved: int


def check_name(optimizer: str) -> None:
    """ValueError that names the nearest for an optimizer that is not in the table."""
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer {optimizer!r} is unknown{nearest(optimizer, OPTIMIZERS)}")


def state_bytes(model: nn.Module, optimizer: OptimizerName) -> int:
    """Bytes that the optimizer keeps for a model of fp32 parameters (on any device; meta will do).

    The step count, 4 bytes for each parameter tensor, is among them. SOAP with its default options.
    """
    check_name(optimizer)
    made = make_optimizer(optimizer, model, lr=1e-3)
    return NUMBER_BYTES * sum(
        shape.numel()
        for member in getattr(made, "optimizers", [made])
        for group in member.param_groups
        for p in group["params"]
        for shape in member.state_shapes(p, group).values()
    )


def update_rows(model: nn.Module, optimizer: OptimizerName) -> list[Update]:
    """The rows of one update: what is done to each number, and products of matrices (Muon's and SOAP's).

    Orthogonalising an m x n matrix (m <= n) takes, per iteration, its Gram matrix, the square of that, and their
    product
    with the matrix: 4 m^2 n + 2 m^3. SOAP's are in `_soap_products`. A stack of experts is that many matrices.
    """
    check_name(optimizer)
    everything = [p for p in model.parameters() if p.requires_grad]
    if optimizer == "muon_adamw":
        matrices, rest = split_for_muon(model)
        rows = [_elementwise("adamw", [p for _, p in rest])]
        return rows + ([_elementwise("muon", matrices), _orthogonalize(matrices)] if matrices else [])
    rows = [_elementwise(optimizer, everything)]
    if optimizer == "soap":
        rows += _soap_products(model)
    return rows


def _elementwise(name: str, params: Sequence[Tensor]) -> Update:
    count = sum(p.numel() for p in params)
    return Update(name, "elementwise", ELEMENTWISE_FLOPS[name] * count, NUMBER_BYTES * MOVED[name] * count)


def _orthogonalize(matrices: Sequence[Tensor]) -> Update:
    """Muon's iterations, of three products of an m x n matrix each, m <= n, in bfloat16."""
    shapes = [(p.shape[:-2].numel(), *sorted(p.shape[-2:])) for p in matrices]
    flops = MUON_ITERATIONS * sum(count * (4 * m * m * n + 2 * m**3) for count, m, n in shapes)
    moved = 2 * MUON_ITERATIONS * sum(count * (3 * m * n + 4 * m * m) for count, m, n in shapes)
    return Update("orthogonalize", "matmul", flops, moved)


def _soap_products(model: nn.Module) -> list[Update]:
    """For a side of length s of a matrix of N numbers: four products of 2 s N (gradient and momentum into the basis,
    the direction out of it, the side's moments), and every tenth step 2 s^3 for the power iteration and 8/3 s^3 for
    QR with its Q made explicit."""
    made = make_optimizer("soap", model)
    sides = [
        (p.numel(), p.shape[axis], p.shape[:-2].numel())
        for group in made.param_groups
        for p in group["params"]
        for side, axis in (("left", -2), ("right", -1))
        if side in made.state_shapes(p, group)
    ]
    products = sum(4 * 2 * s * n for n, s, _ in sides)
    moved = sum(3 * (2 * n + count * s * s) + n + 2 * count * s * s for n, s, count in sides)
    renewal = sum(count * 14 * s**3 for _, s, count in sides) // (3 * SOAP_PERIOD)
    renewed = sum(5 * count * s * s for _, s, count in sides) // SOAP_PERIOD
    return [
        Update("soap_products", "matmul", products, NUMBER_BYTES * moved),
        Update("soap_bases", "matmul", renewal, NUMBER_BYTES * renewed),
    ]
