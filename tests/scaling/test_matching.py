from dataclasses import replace

import pytest

from groundup.accounting import count_parameters, training_flops_per_token
from groundup.scaling import AblationSettings, ladder, match_parameters, modern, named
from groundup.scaling.matching import affordable_steps, matched_configs, plan_lengths, relative_lengths
from groundup.scaling.variants import CHANGES, changed

BASE = modern(AblationSettings())


def test_d_ff_by_hand():
    """SwiGLU with d_model 128 and d_ff 344 has 3 * 128 * 344 weights; two matrices of 516 have as many: 512."""
    plain = match_parameters(changed(BASE, "relu_mlp"), count_parameters(BASE).total)
    assert BASE.blocks[0].ffn.d_ff == 344 and plain.blocks[0].ffn.d_ff == 512


@pytest.mark.parametrize("name", CHANGES)
def test_every_named_change_can_be_matched_to_one_per_cent(name):
    target = count_parameters(BASE).total
    if name == "tied":  # a third of these parameters are the tables
        target = count_parameters(changed(BASE, name)).total
    made = match_parameters(changed(BASE, name), target)
    assert abs(count_parameters(made).total - target) <= 0.01 * target


def test_a_small_model_takes_a_finer_d_ff():
    small = replace(BASE, d_model=8, vocab_size=260, blocks=changed(BASE, "swiglu").blocks)
    target = count_parameters(small).total + 3 * 8 * 4  # one more channel of d_ff in each of four layers
    made = match_parameters(small, target, tolerance=1e-9)
    assert made.blocks[0].ffn.d_ff == small.blocks[0].ffn.d_ff + 1


def test_what_no_d_ff_can_reach_is_refused():
    with pytest.raises(ValueError, match="match flops or time instead"):
        match_parameters(BASE, 1000)


def test_the_ladder_with_equal_parameters_has_equal_parameters():
    settings = AblationSettings(match="parameters")
    counts = [count_parameters(config).total for config in matched_configs(ladder(modern(settings)), settings)]
    assert max(counts) <= 1.02 * min(counts)
    assert all(abs(count - counts[0]) <= 0.01 * counts[0] for count in counts)


def test_equal_flops_differ_by_less_than_a_step():
    variants = named(BASE, ["relu_mlp", "mqa"], [("wide", ["blocks.0.ffn.d_ff=1000"])])
    configs = matched_configs(variants, AblationSettings(match="flops"))
    lengths = relative_lengths(configs, [1.0] * 4, "flops")
    assert lengths[0] == 1.0 and lengths[2] > 1.0 > lengths[3]
    planned = plan_lengths(variants, configs, [1.0] * 4, [round(400 * length) for length in lengths])
    flops = [p.flops(1024) for p in planned]
    for p, spent in zip(planned, flops, strict=True):
        assert spent == p.steps * 1024 * training_flops_per_token(p.config, p.config.context_length)
        assert abs(spent - flops[0]) <= 0.5 * 1024 * p.flops_per_token


def test_equal_time_follows_the_measured_seconds():
    assert relative_lengths([BASE] * 3, [0.2, 0.1, 0.4], "time") == [1.0, 2.0, 0.5]
    assert relative_lengths([BASE] * 2, [0.2, 0.1], "parameters") == [1.0, 1.0]


def test_a_budget_pays_for_all_runs():
    """0.1 and 0.2 s a step, 3 seeds and 3 rates at a third: 4 runs each, so 1.2 s for one step of all."""
    settings = AblationSettings(seeds=3, rates=(0.1, 0.2, 0.3), tune_share=1 / 3)
    assert affordable_steps(130.0, [0.1, 0.2], [1.0, 1.0], settings, overhead=9.9) == 100
    with pytest.raises(ValueError, match="the budget leaves 16 steps.*at least 34 s"):
        affordable_steps(30.0, [0.1, 0.2], [1.0, 1.0], settings, overhead=10.0)
