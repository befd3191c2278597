"""Which linear layers of a model multiply eight bits: those of its blocks whose sizes fit."""

from torch import nn

from groundup.kernels.quantized_linear import MULTIPLES, Products
from groundup.model.linear import Linear
from groundup.model.lora import read_as_matrices
from groundup.model.moe import GroupedLinear


def set_products(model: nn.Module, products: Products | None) -> list[str]:
    """Make the linear layers of blocks multiply `products` (None: the activations' type), in place.

    Returns the paths of those that do not: experts, and layers with a size that is no multiple of 16 (fp8) or 32
    (mxfp8, int8). Embeddings, the head, norms and routers are not asked. ValueError where no layer fits.
    """
    for module in model.modules():
        if isinstance(module, Linear):
            module.products = None
    if products is None:
        return []
    inside, multiple = block_layers(model), MULTIPLES[products]
    fit = {path: layer for path, layer in inside.items() if all(n % multiple == 0 for n in layer.weight.shape)}
    if not fit:
        raise ValueError(
            f"precision {products!r}: no linear layer of the model's blocks has sizes that are multiples of "
            f"{multiple}; use 'bf16'"
        )
    for layer in fit.values():
        layer.products = products
    experts = [path for path, module in model.named_modules() if isinstance(module, GroupedLinear)]
    return [path for path in inside if path not in fit] + experts


def block_layers(model: nn.Module) -> dict[str, Linear]:
    """Path -> the linear layers of blocks that are called; those that are read as matrices are left out."""
    passed_over = read_as_matrices(model)
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Linear) and "blocks" in path.split(".") and path not in passed_over
    }
