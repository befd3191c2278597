"""Profiles of real steps: the sums hold, the marks go away, and what is made to be the bottleneck is named."""

import contextlib
import gzip
import itertools
import json
import time
from dataclasses import replace

import pytest
import torch

from groundup import presets
from groundup.accounting import Machine, step_work, training_ledger
from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, Transformer
from groundup.profiling import GroupRow, Profile, ProfileSettings, bottleneck, profile_model, write_profile
from groundup.profiling.groups import ATTENTION, DATA, FEED_FORWARD, GROUPS, HEAD, NORM, OPTIMIZER, by_group
from groundup.profiling.scopes import marks
from tests.model.variants import VARIANTS

MACHINE = Machine("cpu", "one core", 1, "fp32", {"fp32 x1": 5e10}, 1e10, 2**33)
QUICK = ProfileSettings(batch_size=2, context_length=16, steps=1, warmup=1)


def tiny(**changes) -> ModelConfig:
    return presets.llama(**{"vocab_size": 64, "d_model": 32, "num_layers": 2, "context_length": 32, **changes})


def profiled(config: ModelConfig, settings: ProfileSettings = QUICK, **options) -> Profile:
    return profile_model(Transformer(config), settings, machine=MACHINE, **options)[0]


@pytest.mark.parametrize("phase", ["train", "prefill", "decode"])
def test_shares_are_whole_and_belong_to_parts_that_ran(phase):
    found = profiled(tiny(), replace(QUICK, phase=phase))
    assert [row.group for row in found.groups] == list(GROUPS)
    assert sum(row.time_share for row in found.groups) == pytest.approx(1.0)
    assert sum(row.flops_share for row in found.groups) == pytest.approx(1.0)
    assert sum(row.seconds for row in found.groups) == pytest.approx(found.traced_seconds)
    ran = {row.group for row in found.groups if row.seconds > 0}
    assert {ATTENTION, NORM, FEED_FORWARD, HEAD} <= ran and (OPTIMIZER in ran) == (phase == "train")
    assert found.group(HEAD).flops_per_second == found.group(HEAD).flops / found.group(HEAD).seconds


def test_the_backward_pass_is_told_apart_too():
    forward = profiled(tiny(), replace(QUICK, phase="prefill"))
    training = profiled(tiny())
    backward = {op.group for op in training.operations if "Backward" in op.name or "backward" in op.name}
    assert {ATTENTION, FEED_FORWARD} <= backward
    calls = [sum(op.calls for op in found.operations if op.group == NORM) for found in (forward, training)]
    assert calls[1] > 2 * calls[0]
    products = {op.group for op in training.operations if op.name == "aten::mm"}
    assert "other" not in products and {FEED_FORWARD, HEAD, "attention projections"} <= products


def test_products_are_attributed_forward_and_backward():
    # A plain feed-forward layer has 2 products in the forward pass and 4 in the backward, in each of 2 layers.
    config = ModelConfig(64, 32, 2, (BlockConfig(AttentionConfig(2, 2, 16), MLPConfig(64, gated=False)),))
    found = profiled(config)
    calls = {op.group: op.calls for op in found.operations if op.name == "aten::mm"}
    assert calls[FEED_FORWARD] == 2 * (2 + 4) and calls["attention projections"] == 2 * (4 + 8)


def test_recomputed_blocks_are_attributed_too():
    model = Transformer(tiny())
    model.recompute = True
    again = profile_model(model, QUICK, machine=MACHINE)[0]
    calls = {op.group: op.calls for op in again.operations if op.name == "aten::mm"}
    assert calls[FEED_FORWARD] == 2 * 3 * (2 + 2)  # forward twice, two in the backward pass; three matrices, two layers


def test_what_does_most_of_the_work_is_named():
    wide = ModelConfig(32, 64, 1, (BlockConfig(AttentionConfig(1, 1, 16), MLPConfig(16_384, gated=False)),))
    settings = replace(QUICK, batch_size=4, context_length=64)
    cases = {
        HEAD: tiny(vocab_size=16_384, num_layers=1),
        FEED_FORWARD: wide,
        ATTENTION: ModelConfig(32, 32, 1, (BlockConfig(AttentionConfig(16, 1, 8), MLPConfig(8, gated=False)),)),
    }
    for group, config in cases.items():
        shape = settings if group != ATTENTION else replace(settings, batch_size=1, context_length=1024)
        found = bottleneck(profiled(config, shape))
        assert found.group == group, found
        assert found.sentence.startswith(group) and "Without it a step would take" in found.advice


def test_a_slow_source_of_batches_is_named():
    def slow():
        for seed in itertools.count():
            time.sleep(0.2)
            yield {"tokens": torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(seed))}

    found = bottleneck(profiled(tiny(), batches=slow()))
    assert found.group == DATA and "no arithmetic" in found.sentence


def test_marks_leave_no_trace_of_themselves():
    model = Transformer(tiny())
    before = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    attributes = set(vars(model))
    with contextlib.suppress(KeyError), marks(model):
        assert "hidden" in vars(model)
        raise KeyError
    assert set(vars(model)) == attributes
    assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()} == before


def test_the_model_is_left_in_its_type_and_mode():
    model = Transformer(tiny()).eval()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    profile_model(model, replace(QUICK, phase="decode", precision="bf16"), machine=MACHINE)
    assert model.compute_dtype == torch.float32 and not model.training
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_files_of_a_profile(tmp_path):
    found, recorder = profile_model(Transformer(tiny()), QUICK, machine=MACHINE)
    paths = write_profile(tmp_path / "out", found, recorder)
    assert [path.name for path in paths] == ["profile.json", "memory.json", "trace.json.gz"]
    data = json.loads(paths[0].read_text())
    assert data["bottleneck"]["group"] in GROUPS and data["overhead"] == found.overhead
    assert data["memory"]["peak_bytes"] == found.memory.peak_bytes > data["memory"]["resident_bytes"]
    assert len(json.loads(paths[1].read_text())["points"]) == len(found.memory.points)
    names = {event["name"] for event in json.loads(gzip.decompress(paths[2].read_bytes()))["traceEvents"]}
    assert {"groundup: step", "groundup: norms"} <= names


@pytest.mark.parametrize("mixer", ["latent", "mamba2", "gated_delta", "lstm"])
@pytest.mark.parametrize("phase", ["train", "decode"])
def test_every_kind_of_mixer_is_told_apart(mixer, phase):
    config = next(config for name, config in sorted(VARIANTS.items()) if name.startswith(mixer))
    found = profiled(config, replace(QUICK, phase=phase))
    assert sum(row.time_share for row in found.groups) == pytest.approx(1.0)
    assert all(found.group(name).seconds > 0 and found.group(name).flops > 0 for name in (ATTENTION, FEED_FORWARD))
    assert found.group("other").flops == 0


@pytest.mark.parametrize("name", sorted(VARIANTS)[::6])
def test_every_row_of_the_ledger_has_its_group(name):
    config = VARIANTS[name]
    rows = step_work(config, "train", batch=1, seq=8, optimizer="muon_adamw")
    table = by_group(rows)
    assert sum(len(group) for group in table.values()) == len(rows)
    assert not table[DATA] and not table["other"]
    flops = sum(r.flops for r in training_ledger(config, 8, optimizer="muon_adamw") if r.phase == "optimizer")
    assert sum(r.flops for r in table[OPTIMIZER]) == flops
    assert all(r.name not in ("gate", "up", "down") for r in table["attention projections"])


def test_a_host_that_is_too_slow_is_said_so():
    found = profiled(tiny())
    slow = replace(found, interpreter_share=0.7)
    assert bottleneck(slow).host and "70% of the step passes in no operation" in bottleneck(slow).sentence
    assert not bottleneck(replace(found, interpreter_share=0.2)).host


def test_words_for_what_bounds_a_group():
    found = profiled(tiny())

    def sentence(over_least, arithmetic_share):
        row = GroupRow(NORM, 10, 0.01, 1.0, 0.9, 10.0, 8, 0.5, over_least, arithmetic_share)
        return bottleneck(replace(found, groups=(row,), interpreter_share=0.0)).sentence

    assert "bound by memory" in sentence(1.5, 0.0) and "bound by arithmetic" in sentence(1.5, 0.9)
    assert "by neither" in sentence(9.0, 0.9)


@pytest.mark.parametrize(("change", "words"), [
    ({"batch_size": 0}, "batch_size=0"),
    ({"steps": 0}, "steps=0"),
    ({"context_length": 0}, "context_length=0"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(QUICK, **change)
