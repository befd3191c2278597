"""Which rank is where in a plan, and which ranks work together."""

import pytest
import torch.distributed as dist

from groundup.parallel.plan import AXES, Mesh, ParallelPlan
from tests.distributed import run_ranks


def test_the_last_axis_counts_fastest():
    plan = ParallelPlan(pipeline=2, data=3, tensor=2)
    assert plan.size == 12
    assert plan.groups(["tensor"])[:2] == [[0, 1], [2, 3]]
    assert plan.groups(["data"])[:2] == [[0, 2, 4], [1, 3, 5]]
    assert plan.groups(["pipeline"])[0] == [0, 6]
    assert plan.groups(["data", "tensor"]) == [list(range(6)), list(range(6, 12))]


@pytest.mark.parametrize("plan", [ParallelPlan(), ParallelPlan(data=2, shard=3, context=2, expert=2)])
def test_every_rank_is_in_one_group_of_those_that_differ_from_it_along_the_axes_only(plan):
    for axis in AXES:
        groups = plan.groups([axis])
        assert sorted(rank for group in groups for rank in group) == list(range(plan.size))
        for group in groups:
            places = [plan.coordinates(rank) for rank in group]
            assert [place.pop(axis) for place in places] == list(range(getattr(plan, axis)))
            assert all(place == places[0] for place in places)


def test_the_text_of_a_plan_is_read_back():
    plan = ParallelPlan.parse("data=2 tensor=2 sequence=true zero=1")
    assert plan == ParallelPlan(data=2, tensor=2, sequence=True, zero=1)
    assert ParallelPlan.parse(plan.text) == plan and ParallelPlan().text == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("data=0", "at least 1"),
        ("tensr=2", "tensor"),
        ("data=2 zero=3", "one of 0, 1, 2"),
        ("zero=1", "needs data=2"),
        ("data=2 sequence=true", "needs tensor=2"),
        ("microbatches=4", "needs pipeline=2"),
        ("pipeline=2 schedule=1f2b", "1f1b"),
        ("pipeline=2 schedule=interleaved", "chunks=1"),
        ("pipeline=2 chunks=2", "interleaved"),
        ("context=2 method=rign", "ring"),
        ("method=gather", "needs context=2"),
        ("schedule=gpipe", "needs pipeline=2"),
    ],
)
def test_what_is_wrong_or_has_no_effect_is_refused(words, says):
    with pytest.raises(ValueError, match=says):
        ParallelPlan.parse(words)


def meshes(rank, size):
    mesh = Mesh(ParallelPlan(data=2, tensor=2))
    with pytest.raises(ValueError, match="is for 2 ranks; here are 4"):
        Mesh(ParallelPlan(data=2))
    groups = [dist.get_process_group_ranks(mesh.group(*axes)) for axes in (["tensor"], ["data"], ["data", "context"])]
    return mesh.rows, mesh.row_parts, groups


def test_a_mesh_has_the_groups_of_its_rank():
    found = run_ranks(meshes, 4)
    assert found[1] == (0, 2, [[0, 1], [1, 3], [1, 3]])
    assert found[2] == (1, 2, [[2, 3], [0, 2], [0, 2]])
