"""Whether torch.compile can trace the kernels into one graph, asked where no GPU is: it traces, and nothing is run.

In a process of its own: in the tests' Triton interprets, and an interpreted kernel is no kernel to the compiler.
"""

import json

import torch
import torch.utils._triton

from groundup.kernels import rope_frequencies, rope_tables
from groundup.kernels.triton import glu, muon, norm, rope


def traced(function, *args) -> bool:
    """Whether a full graph came to be. What runs it afterwards finds no GPU."""
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    try:
        torch.compile(function, backend=backend, fullgraph=True)(*args)
    except RuntimeError as error:
        assert "active drivers" in str(error), error
    return len(graphs) == 1


def main() -> None:
    torch.utils._triton.has_triton = lambda: True
    x, y = torch.randn(2, 4, 64, requires_grad=True).unbind()
    gain, bias = torch.randn(2, 64, requires_grad=True).unbind()
    heads = torch.randn(2, 4, 2, 8, requires_grad=True)
    tables = rope_tables(torch.arange(4)[None], rope_frequencies(8))
    found = {
        "rmsnorm": traced(lambda x, w: norm.rmsnorm(x * 2, w) + 1, x, gain),
        "add_layernorm": traced(lambda x, y, w, b: norm.add_layernorm(x * 2, y, w, b)[1] + 1, x, y, gain, bias),
        "gated": traced(lambda x, y: glu.gated(x * 2, y) + 1, x, y),
        "rotate": traced(lambda x: rope.rotate(x * 2, *tables) + 1, heads),
        "newton_schulz": traced(lambda x: muon.newton_schulz(x, (1.0, 2.0, 3.0)) + 1, torch.randn(1, 64, 64)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
