"""Which products a plan trains with: what the user says, else what is faster here."""

import json
from dataclasses import replace

import pytest
import torch

from groundup.accounting.plan import Wishes, describe, plan
from groundup.build import products
from groundup.build.decide import decide, decision_from_json
from groundup.build.products import choose_products, layer_sizes, product_seconds
from groundup.build.settings import BuildSettings
from groundup.kernels.int8_product import multiplies_bytes
from tests.build.conftest import SMALL
from tests.build.test_decide import FACTS, MACHINE

WISHES = Wishes(vocab_size=300, d_model=64, num_layers=2, context_length=32, batch_size=4)
PLAN = plan(FACTS, MACHINE, 5.0, WISHES)[0]
needs_units = pytest.mark.skipif(not multiplies_bytes("cpu"), reason="this processor has no products of bytes")


@pytest.fixture
def measured(monkeypatch):
    """Units for bytes, whatever this processor has, and a choice of how fast they are found to be."""

    def set_ratio(ratio: float) -> None:
        monkeypatch.setattr(products, "real", lambda *_: True)
        monkeypatch.setattr(products, "product_seconds", lambda *_: {"bf16": 1.0, "int8": ratio})

    return set_ratio


def test_int8_is_chosen_where_its_products_are_clearly_faster(measured):
    measured(0.6)
    assert choose_products(PLAN, MACHINE, BuildSettings()) == "int8"
    assert choose_products(PLAN, replace(MACHINE, precision="fp32"), BuildSettings()) is None
    for said in ("bf16", "fp32"):
        assert choose_products(PLAN, MACHINE, BuildSettings(precision=said)) is None
    measured(0.95)
    assert choose_products(PLAN, MACHINE, BuildSettings()) is None
    assert choose_products(PLAN, MACHINE, BuildSettings(precision="int8")) == "int8"


def test_without_units_it_is_never_chosen_and_refused_when_asked_for(monkeypatch):
    monkeypatch.setattr(products, "real", lambda *_: False)
    assert choose_products(PLAN, MACHINE, BuildSettings()) is None
    with pytest.raises(ValueError, match="precision=int8: this cpu has no units.*bf16 or auto"):
        choose_products(PLAN, MACHINE, BuildSettings(precision="int8"))


def test_the_sizes_are_those_of_the_blocks_layers():
    d_ff = PLAN.model.blocks[0].ffn.d_ff
    assert layer_sizes(PLAN) == {(64, 64): 8, (d_ff, 64): 4, (64, d_ff): 2}
    odd = plan(FACTS, MACHINE, 5.0, replace(WISHES, d_model=48))[0]
    assert not any(48 in size for size in layer_sizes(odd))


@needs_units
def test_products_are_timed_and_count_as_often_as_they_occur(monkeypatch):
    monkeypatch.setattr(products, "_least_seconds", lambda work: (work(), 0.5)[1])
    assert product_seconds(layer_sizes(PLAN), 40) == {"bf16": 7.0, "int8": 7.0}


@needs_units
def test_a_decision_with_int8_trains_with_it_and_is_kept(monkeypatch):
    settings = replace(SMALL, precision="int8")
    decision = decide(FACTS, settings, torch.device("cpu"), spent=3.0)
    assert decision.machine.precision == "bf16" and decision.plan.products == "int8"
    assert decision.session is not None
    block = decision.session.model.blocks[0]
    assert block.ffn.up.products == block.mixer.wq.products == "int8"
    assert decision.session.twin.blocks[0].ffn.up.products is None
    assert "products of blocks in int8" in "\n".join(describe(decision.plan, FACTS))
    stored = json.loads(json.dumps(decision.as_json()))
    assert decision_from_json(stored, device=None).plan == decision.plan
    monkeypatch.setattr("groundup.build.decide.real", lambda *_: False)
    with pytest.raises(ValueError, match="products in int8, for which this processor has no units"):
        decision_from_json(stored, device=None)
