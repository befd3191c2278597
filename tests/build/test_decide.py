"""Deciding: the user's choices are kept, the decision survives its file, and too little time is said."""

import json
import time
from dataclasses import replace

import pytest
import torch

from groundup.accounting.hardware import Machine
from groundup.accounting.plan import TextFacts
from groundup.build.decide import decide, decision_from_json, fixed, left_bytes, saving_bytes, worth_compiling
from groundup.build.folder import RunFolder
from groundup.build.settings import BuildSettings
from groundup.build.stages import Stages
from groundup.train.checkpoint import SHARD_BYTES
from tests.build.conftest import SMALL

FACTS = TextFacts(train_bytes=60_000, held_out_bytes=10_000, documents=30, zstd_bits_per_byte=2.0)
MACHINE = Machine("cpu", "some", 1, "bf16", {"bf16 x1": 1e11, "fp32 x1": 5e10}, 1e10, 2**34)


@pytest.fixture(scope="module")
def decision():
    return decide(FACTS, replace(SMALL, threads=1), torch.device("cpu"), spent=3.0)


def test_the_users_choices_are_kept(decision):
    assert decision.plan.model.d_model == SMALL.d_model
    assert decision.plan.model.vocab_size == SMALL.vocab_size
    assert decision.machine.threads == 1
    assert decision.plan.epochs <= 2.0
    assert decision.capped or decision.plan.epochs < 2.0  # on a slow machine the clock comes first


def test_predictions_come_from_a_timed_step(decision):
    assert decision.session is not None
    assert not decision.session.compiled
    assert decision.predicted["step_seconds"] > 0
    assert decision.predicted["peak_memory_bytes"] > 50_000_000  # a process with torch in it, whatever the model
    assert 3.0 < decision.total_seconds <= SMALL.budget_seconds


def test_the_decision_survives_its_file(decision):
    again = decision_from_json(json.loads(json.dumps(decision.as_json())), device=None)
    assert again.plan == decision.plan
    assert again.machine == decision.machine
    assert again.reserve == decision.reserve
    assert again.predicted == decision.predicted


def test_a_run_does_not_move_to_another_device(decision):
    stored = json.loads(json.dumps(decision.as_json()))
    with pytest.raises(ValueError, match="planned for cpu"):
        decision_from_json(stored, device=torch.device("meta"))


def test_a_plan_of_another_version_is_refused_with_the_remedy(decision):
    stored = json.loads(json.dumps(decision.as_json()))
    del stored["plan"]["micro_batches"]
    with pytest.raises(ValueError, match="needs micro_batches.*begin a new run"):
        decision_from_json(stored, device=None)


def test_too_little_time_is_said():
    with pytest.raises(ValueError, match="give it more time"):
        decide(FACTS, replace(SMALL, budget_seconds=30.0), torch.device("cpu"), spent=28.0)


def test_fixed_precision_and_threads_are_measured_when_they_were_not():
    assert fixed(MACHINE, BuildSettings()) == MACHINE
    forced = fixed(MACHINE, BuildSettings(precision="fp32"))
    assert forced.precision == "fp32"
    assert forced.peak_flops == 5e10
    two = fixed(MACHINE, BuildSettings(threads=2))
    assert two.threads == torch.get_num_threads() == 2
    assert two.gemm_flops["bf16 x2"] > 0


def test_a_checkpoint_is_copied_while_it_is_written(decision):
    made = decision.plan
    copy = saving_bytes(made, MACHINE)
    assert 8 * made.parameters < copy < 12 * made.parameters
    assert saving_bytes(made, replace(MACHINE, device="cuda")) == 0
    assert saving_bytes(replace(made, parameters=10**9), MACHINE) == SHARD_BYTES


def test_compiling_pays_only_in_longer_builds():
    assert worth_compiling(BuildSettings(budget_seconds=60.0)) is False
    assert worth_compiling(BuildSettings(budget_seconds=600.0)) is None
    assert worth_compiling(BuildSettings(budget_seconds=60.0, compile=True)) is True


@pytest.mark.parametrize("wish", [{"batch_size": 200_000}, {"context_length": 200_000}])
def test_a_step_longer_than_the_budget_is_refused_before_it_is_tried(wish):
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"smaller .*{next(iter(wish))}|fits into"):
        decide(FACTS, replace(SMALL, budget_seconds=30.0, threads=1, **wish), torch.device("cpu"), spent=20.0)
    assert time.monotonic() - began < 20


def test_what_stages_left_in_the_process_is_memory_that_the_trial_had_not(decision):
    """A trial's process held 500 bytes when it was over; before training it holds 620."""
    seen = replace(decision, idle_bytes=500)
    assert left_bytes(seen, 620) == 120
    assert left_bytes(seen, 480) == 0  # a smaller process is no reason to expect less of a step
    assert left_bytes(replace(decision, idle_bytes=0), 620) == 0  # resumed: there was no trial in this process
    assert left_bytes(replace(seen, machine=replace(seen.machine, device="cuda:0")), 620) == 0


def test_the_plan_on_disk_gets_what_stages_left_before_training_begins(decision, tmp_path):
    folder = RunFolder.create(tmp_path / "run", time.monotonic())
    folder.write("plan.json", decision.as_json())
    stages = Stages(folder, BuildSettings(), replace(decision, idle_bytes=500), None)
    peak = decision.plan.peak_bytes
    stages._expect(620)
    assert stages.decision.plan.peak_bytes == peak + 120
    assert folder.read("plan.json")["predicted"]["peak_memory_bytes"] == peak + 120
    (folder.path / "checkpoints").mkdir()  # training has begun: what was predicted before it stays
    stages._expect(900)
    assert folder.read("plan.json")["predicted"]["peak_memory_bytes"] == peak + 120
    folder.release()
