from dataclasses import replace

import pytest
import torch

from groundup.model import Rope, SinusoidalPositions, Transformer
from groundup.presets import vaswani
from groundup.scaling import AblationSettings, ladder, leave_one_out, modern, named
from groundup.scaling.variants import CHANGES, LADDER, changed

SETTINGS = AblationSettings(d_model=32, num_layers=2, context_length=16, vocab_size=300)
BASE = modern(SETTINGS)


def test_the_ladder_begins_in_2017_and_ends_at_llama():
    rungs = ladder(BASE)
    first = vaswani(vocab_size=300, num_layers=2, d_model=32, num_heads=1, context_length=16)
    assert rungs[0].config == replace(first, tie_embeddings=False, scale_embeddings=False)
    assert rungs[-1].config == BASE
    assert [rung.against for rung in rungs] == [None, *(rung.name for rung in rungs[:-1])]


def test_each_rung_is_one_switch():
    rungs = ladder(BASE, ["gqa", "tied"])
    for (_, new), before, after in zip(LADDER, rungs, rungs[1:], strict=False):
        assert changed(before.config, new) == after.config != before.config
    assert rungs[-1].config.tie_embeddings


def test_leave_one_out_turns_one_switch_back():
    base, *others = leave_one_out(BASE)
    assert base.config == BASE and len(others) == len(LADDER)
    for (old, new), variant in zip(LADDER, others, strict=True):
        assert variant.name == old and variant.against == "base"
        assert variant.config != BASE and changed(variant.config, new) == BASE


@pytest.mark.parametrize("name", CHANGES)
def test_every_named_change_runs(name):
    model = Transformer(changed(BASE, name))
    assert model(torch.arange(8)[None]).isfinite().all()


def test_position_changes_leave_one_kind_of_position():
    assert isinstance(changed(BASE, "sinusoidal").positions, SinusoidalPositions)
    assert changed(BASE, "sinusoidal").blocks[0].mixer.rope is None
    assert changed(changed(BASE, "alibi"), "rope").blocks[0].mixer.rope == Rope()
    assert not changed(changed(BASE, "alibi"), "rope").blocks[0].mixer.alibi


def test_own_overrides_and_what_is_refused():
    made = named(BASE, ["geglu"], [("narrow", ["blocks.0.ffn.d_ff=40"])])
    assert [v.name for v in made] == ["base", "geglu", "narrow"] and made[2].config.blocks[0].ffn.d_ff == 40
    with pytest.raises(ValueError, match="'gelu'.*did you mean 'geglu'"):
        named(BASE, ["gelu"])
    with pytest.raises(ValueError, match="named twice"):
        named(BASE, ["geglu", "geglu"])
    with pytest.raises(ValueError, match="no field 'd_f'"):
        named(BASE, [], [("x", ["blocks.0.ffn.d_f=1"])])
    with pytest.raises(ValueError, match="'tie'.*did you mean 'tied'"):
        ladder(BASE, ["tie"])
