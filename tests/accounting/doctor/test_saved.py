"""The card on disk: kept as it was measured, refused where it is no card, and used for its own devices only."""

import json

import pytest
import torch

from groundup.accounting.cluster_plan import Budget, plan_cluster
from groundup.accounting.devices import DEVICES, Cluster, cluster
from groundup.accounting.doctor import Link, SavedCard, load_card, save_card, with_card
from groundup.accounting.doctor.bandwidth import Memory
from groundup.accounting.doctor.card import Card
from groundup.accounting.doctor.links import Transfer, link
from groundup.accounting.doctor.matmul import MatmulRate
from groundup.accounting.doctor.saved import SavedLink, device_count, saved

NO_LATENCY = {"what": "all-reduce", "between": "", "latency_seconds": 0.0, "bandwidth": 1.0}


def card_of(bandwidth=400e9, count=8, **changes):
    values = {
        "name": "NVIDIA H100 80GB HBM3", "count": count, "node": "rack7", "date": "2026-01-02T03:04:05+00:00",
        "flops": {"bf16": 700e12}, "bandwidth": 2.5e12,
        "links": (SavedLink("all-reduce", "8 GPUs (nccl)", 20e-6, bandwidth),),
    }  # fmt: skip
    return SavedCard(**(values | changes))


def test_what_is_written_is_read_again(tmp_path):
    path = save_card(card_of(), tmp_path / "deep" / "card.json")
    assert load_card(path) == card_of()


def test_the_cache_is_where_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path))
    assert save_card(card_of()) == tmp_path / "doctor.json"
    assert load_card() == card_of()


def test_of_a_card_the_best_rates_and_the_links_with_figures_are_kept():
    rates = (MatmulRate("bf16", 1, 2e12), MatmulRate("bf16", 2, 3e12), MatmulRate("fp8", 1, 0.0, None, "no kernel"))
    card = Card("made up", "cuda:0", 1, None, (), 0, 0, rates, Memory(4e12, 3e12, 5e12), (), (), None, ())
    ways = [
        link("all-reduce", "2 GPUs", [Transfer(4096, 1e-4), Transfer(2**24, 0.01)]),
        Link("peer copy", "", error=""),
    ]
    kept = saved(card, ways, 2)
    assert kept.flops == {"bf16": 3e12} and kept.bandwidth == 5e12 and kept.count == 2
    assert kept.links == (SavedLink("all-reduce", "2 GPUs", 1e-4, 2**24 / 0.01),)
    assert device_count(torch.device("cpu")) == 1


def test_the_slowest_copy_stands_for_a_collective_that_was_not_measured():
    copies = tuple(SavedLink("peer copy", f"0 and {i}", 1e-5, rate) for i, rate in enumerate((3e11, 2e10, 3e11)))
    assert card_of(links=copies).link == copies[1]
    assert card_of(links=()).link is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", 'expected an object with "format": 1'),
        ('{"format": 2}', 'expected an object with "format": 1'),
        ("{", "card.json"),
        ({"count": 0}, "count=0; expected a positive number"),
        ({"flops": {"bf16": -1.0}}, "flops.bf16=-1.0"),
        ({"bandwidth": 0.0}, "bandwidth=0.0"),
        ({"links": [NO_LATENCY]}, "latency_seconds=0"),
        ({"bandwith": 1.0}, "bandwith"),
        ({"name": 3}, "name"),
    ],
)  # fmt: skip
def test_what_is_no_card_is_refused(text, message, tmp_path):
    path = save_card(card_of(), tmp_path / "card.json")
    path.write_text(text if isinstance(text, str) else json.dumps({**json.loads(path.read_text()), **text}))
    with pytest.raises(ValueError, match=message):
        load_card(path)


def test_a_card_tells_about_its_own_devices_only():
    assert with_card(cluster("h100x4"), card_of()).measured.flops == 700e12
    with pytest.raises(ValueError, match="is of NVIDIA H100 80GB HBM3, and the plan is for A100"):
        with_card(cluster("a100x4"), card_of())
    with pytest.raises(ValueError, match="a machine with 8 x .* it does not tell about 16"):
        with_card(cluster("h100x16"), card_of())
    with pytest.raises(ValueError, match="no rate of bf16"):
        with_card(cluster("h100"), card_of(flops={"fp32": 1e13}))


def test_a_step_takes_its_messages_longer():
    """1 B parameters as eight whole copies: gradients of 4 bytes each, of which a ring sends 2 x 7/8."""
    given = Budget(parameters=1e9, tokens=2e9, mfu=0.5, context_length=4096)
    fast, slow = (plan_cluster(given, with_card(cluster("h100x8"), card_of(rate)))[0] for rate in (400e9, 1e9))
    assert (slow.sharding, slow.tensor, slow.recompute) == ("none", 1, False) == (fast.sharding, fast.tensor, False)
    sent = 4 * slow.parameters * 2 * 7 / 8
    assert slow.communication_seconds == pytest.approx(sent / 1e9 + 20e-6)
    assert slow.update_seconds == pytest.approx(28 * slow.parameters / 2.5e12)
    assert slow.communication_seconds is not None and slow.update_seconds is not None
    steps = slow.tokens / slow.batch_tokens
    assert (slow.seconds - fast.seconds) / steps == pytest.approx(sent / 1e9 - sent / 400e9)
    arithmetic = slow.flops / (8 * 700e12 * 0.5)
    assert slow.seconds == pytest.approx(arithmetic + steps * (slow.communication_seconds + slow.update_seconds))


def test_over_a_slow_link_layers_are_not_shared():
    """A pass sends all weights three times when they are sharded, and activations of every layer when it is cut: the
    fewer bytes decide once the link is what is slow."""
    given = Budget(parameters=13e9, tokens=2e9, mfu=0.5)
    fast, slow = (plan_cluster(given, with_card(cluster("h100x8"), card_of(rate)))[0] for rate in (400e9, 50e9))
    assert fast.tensor > 1 and not fast.recompute
    assert slow.tensor == 1 and slow.recompute  # a third more arithmetic costs less than the messages do


def test_a_time_is_kept_with_messages_in_it():
    given = Budget(seconds=5400.0)
    plan = plan_cluster(given, with_card(cluster("h100x8"), card_of(5e9)))[0]
    assert plan.seconds == pytest.approx(5400, rel=2e-3)
    assert plan.flops < 0.95 * plan_cluster(given, with_card(cluster("h100x8"), card_of(400e9)))[0].flops


def test_a_card_without_links_gives_rates_alone():
    target = with_card(cluster("h100x8"), card_of(links=()))
    plan = plan_cluster(Budget(flops=1e18), target)[0]
    assert plan.communication_seconds is None and plan.tensor == 1
    assert plan.seconds == pytest.approx(1e18 / (8 * 700e12 * 0.4))
    assert isinstance(target, Cluster) and target.device is DEVICES["h100"]
