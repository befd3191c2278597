"""Whether the blocks' linear layers multiply int8: measured at the sizes of the plan, product by product."""

import time
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F

from groundup.accounting.hardware import Machine
from groundup.accounting.plan import TrainingPlan
from groundup.build.settings import BuildSettings
from groundup.kernels.int8_product import int8_product, int8_transposed_product
from groundup.kernels.quantized_linear import MULTIPLES, Products, real
from groundup.model import Transformer
from groundup.model.products import block_layers

ROUNDS = 3
# A step is more than these products: where they gain less, it gains nothing that could be told from noise.
WORTH = 0.85


def choose_products(made: TrainingPlan, machine: Machine, settings: BuildSettings) -> Products | None:
    """What the plan's blocks multiply: int8 if the user says so, or leaves it open and it is clearly faster than bf16.

    ValueError where the user asks for what this device has no units for.
    """
    here = real("int8", machine.device)
    if settings.precision == "int8":
        if not here:
            raise ValueError(
                f"precision=int8: this {machine.device} has no units that multiply bytes (AVX-512 VNNI); "
                "give bf16 or auto"
            )
        return "int8"
    if settings.precision != "auto" or machine.precision != "bf16" or not here:
        return None
    seconds = product_seconds(layer_sizes(made), made.batch_tokens // made.micro_batches)
    return "int8" if seconds["int8"] < WORTH * seconds["bf16"] else None


def layer_sizes(made: TrainingPlan) -> Counter[tuple[int, int]]:
    """(d_out, d_in) of the blocks' layers that can multiply int8, and how many have these."""
    with torch.device("meta"):
        layers = block_layers(Transformer(made.model)).values()
    sizes = [(layer.weight.shape[0], layer.weight.shape[1]) for layer in layers]
    return Counter(size for size in sizes if all(n % MULTIPLES["int8"] == 0 for n in size))


def product_seconds(sizes: Counter[tuple[int, int]], rows: int) -> dict[str, float]:
    """Of all three products of all layers with `rows` tokens, in either type."""
    total = {"bf16": 0.0, "int8": 0.0}
    for (d_out, d_in), count in sizes.items():
        x, d_y = (torch.randn(rows, n).bfloat16() for n in (d_in, d_out))
        weight = torch.randn(d_out, d_in)

        def in_bf16(x: torch.Tensor = x, d_y: torch.Tensor = d_y, weight: torch.Tensor = weight) -> object:
            cast = weight.bfloat16()
            return F.linear(x, cast), d_y @ cast, (d_y.T @ x).float()

        def in_int8(x: torch.Tensor = x, d_y: torch.Tensor = d_y, weight: torch.Tensor = weight) -> object:
            return int8_product(x, weight), int8_product(d_y, weight.T), int8_transposed_product(d_y, x)

        for name, products in (("bf16", in_bf16), ("int8", in_int8)):
            total[name] += count * _least_seconds(products)
    return total


def _least_seconds(work: Callable[[], object]) -> float:
    work()  # compiles, and finds its memory
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
