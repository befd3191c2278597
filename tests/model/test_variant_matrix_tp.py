"""Every variant on two tensor-parallel ranks: logits, cached decoding and all gradients equal one process."""

import torch

from groundup.model import NoCache
from groundup.parallel import full_parameters, tensor_parallel
from tests.distributed import run_ranks
from tests.model.variants import VARIANTS, build, tokens
from tests.thorough import one_in

TOLERANCE = 2e-4


def gradients(model, x):
    torch.manual_seed(0)  # routers that sample in training draw alike
    logits = model(x)
    logits.logsumexp(-1).square().mean().backward()
    return logits.detach()


def cached(model, x):
    """Prefill, then two tokens one at a time."""
    caches, pieces = model.new_caches(x.shape[1]), []
    assert not isinstance(caches[0], NoCache)
    with torch.no_grad():
        for start, end in ((0, 7), (7, 8), (8, 9)):
            pieces.append(model(x[:, start:end], caches=caches))
    return torch.cat(pieces, 1)


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


def gradient(parameter):
    """Zeros for a router whose choices are trained by the objective alone."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def compare(rank, size):
    """Per variant, the relative error of each thing compared; the ranks compare in turn, or all with
    GROUNDUP_THOROUGH=2."""
    x, errors = tokens(), {}
    for number, (name, config) in enumerate(VARIANTS.items()):
        cut = tensor_parallel(build(config))
        logits, decoded = gradients(cut, x), cached(cut, x)
        whole = dict(full_parameters(cut, value=gradient))
        if (number - rank) % one_in(size):
            continue
        single = build(config)
        expected = gradients(single, x)
        found = {"logits": relative(logits, expected), "cached": relative(decoded, expected)}
        grads = {n: gradient(p) for n, p in single.named_parameters()}
        scale = max(g.abs().max() for g in grads.values())
        found |= {n: ((whole[n] - g).abs().max() / scale).item() for n, g in grads.items()}
        errors[name] = found
    return errors


def test_two_ranks_equal_one_process_for_every_variant():
    ranks = run_ranks(compare, 2, timeout=300)
    assert {name for errors in ranks for name in errors} == VARIANTS.keys()
    for errors in ranks:
        wrong = {f"{v}: {what}": e for v, found in errors.items() for what, e in found.items() if not e < TOLERANCE}
        assert not wrong, wrong
