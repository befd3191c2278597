"""Any layout of {1, 2, 4} ranks, of either engine, loads what any other saved: the gathered tensors have the same bits.

Each of the long list loads what one in six of the others saved, so that each saves for and loads from a sixth of the
rest: GROUNDUP_THOROUGH=6 tries all pairs. A rank compares what it has with what the engine's own `load_full` and
`load_optimizer_state` gave it, once per plan also gathered and compared with the original.
"""

import pytest
import torch

from groundup.parallel.pieces import Parts
from groundup.parallel.sharded_checkpoint import load_sharded, read_whole
from groundup.parallel.sharded_saving import ShardedSaver
from tests.distributed import run_ranks
from tests.parallel import layouts
from tests.parallel.layouts import PLANS, SINGLE, folder_of, load_all, model_of, optimizer_over, original, save_all
from tests.thorough import one_in

FAST = ("shard=2", "tensor=2", "pipeline=2 microbatches=2")


def of_one_process(kind, filled):
    model = model_of(kind)
    optimizer = optimizer_over(model.named_parameters())
    if filled:
        weights, states = original(kind)
        model.load_state_dict(weights)
        for name, p in model.named_parameters():
            optimizer.state[p] = {key: value.clone() for key, value in states[name].items()}
    return model, Parts.of_modules([model], optimizer)


def save_single(root, kind):
    with ShardedSaver(folder_of(root, kind, SINGLE, "")) as saver:
        saver.save(1, of_one_process(kind, filled=True)[1], {"kind": kind})


def check_on_one_process(root, kind, sources):
    expected = layouts.local(of_one_process(kind, filled=True)[1])
    for source in sources:
        model, parts = of_one_process(kind, filled=False)
        path = folder_of(root, *source) / "step-1"
        assert load_sharded(path, parts) == {"kind": kind}
        assert layouts.same(layouts.local(parts), expected), source
        whole = read_whole(path, "")
        assert all(torch.equal(whole[f"model.{name}"], t) for name, t in model.named_parameters()), source


def all_pairs(root, chosen, distance=1):
    """chosen: {ranks: [(kind, engine, plan)]}; every ordered pair of them, or one in `distance`, and all with one
    process without an engine."""
    kinds = sorted({kind for some in chosen.values() for kind, _, _ in some})
    sources = [(kind, SINGLE, "") for kind in kinds] + [each for some in chosen.values() for each in some]
    for kind in kinds:
        save_single(root, kind)
    for ranks, some in chosen.items():
        run_ranks(save_all, ranks, str(root), some, timeout=300)
    pairs = 0
    for ranks, some in chosen.items():
        found = run_ranks(load_all, ranks, str(root), some, sources, distance, timeout=300)
        assert all(wrong == [] for _, wrong, _ in found), found
        pairs += found[0][0]
    for kind in kinds:
        check_on_one_process(root, kind, [source for source in sources if source[0] == kind])
    return pairs


def test_some_pairs_on_two_ranks(tmp_path):
    chosen = [("deep", "groundup", plan) for plan in FAST] + [("deep", "torch", "shard=2")]
    assert all_pairs(tmp_path, {2: chosen}) == 4 * 5


@pytest.mark.slow
def test_all_pairs_of_layouts_and_engines(tmp_path):
    chosen = {
        ranks: [
            (kind, engine, plan)
            for kind in ("deep", "experts")
            for engine in ("groundup", "torch")
            for plan in PLANS[kind, engine, ranks]
        ]
        for ranks in (2, 4)
    }
    deep, experts = (sum(each[0] == kind for some in chosen.values() for each in some) for kind in ("deep", "experts"))
    distance = one_in(6)
    every = deep * (deep + 1) + experts * (experts + 1)
    pairs = all_pairs(tmp_path, chosen, distance)
    assert pairs == every if distance == 1 else every / distance <= pairs < every
