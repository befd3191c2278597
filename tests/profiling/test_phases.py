"""Memory by phase: a step by hand, the rehearsal beside the profiler's record, and the page."""

import pytest

from groundup import presets
from groundup.accounting import Machine
from groundup.model import Transformer
from groundup.profiling import ProfileSettings, profile_model
from groundup.profiling.phases import MemorySpans, PhaseMemory, memory_spans, phase_memory
from groundup.profiling.scopes import PREFIX, STEP
from groundup.report.memory import _highest, phases_svg, phases_table, timeline_svg, write_memory

MACHINE = Machine("cpu", "one core", 1, "fp32", {"fp32 x1": 5e10}, 1e10, 2**33)
CONFIG = presets.llama(vocab_size=128, d_model=64, num_layers=2, num_heads=4, context_length=32)


def allocation(at, size):
    return {"name": "[memory]", "ts": at, "args": {"Bytes": size, "Device Type": 0}}


def test_a_step_by_hand():
    """Steady 1,000. Forward takes 300 and gives 100 back, backward takes 500 and frees 600, the update takes 50."""
    events = [
        {"name": STEP, "ts": 100.0, "dur": 1000.0},
        {"name": PREFIX + "head and loss", "ts": 200.0, "dur": 300.0},
        {"name": PREFIX + "optimizer", "ts": 800.0, "dur": 100.0},
        allocation(300, 300), allocation(400, -100), allocation(600, 500), allocation(700, -600), allocation(850, 50),
        {"name": "[memory]", "ts": 860, "args": {"Bytes": 10**9, "Device Type": 1}},  # of another device
    ]  # fmt: skip
    step = memory_spans(events, "cpu", 1000)
    assert step.spans == {"forward": (1e-4, 4e-4), "update": (7e-4, 8e-4)}
    # The update begins with the 1,100 that the backward pass leaves.
    assert step.peaks(1000) == {"forward": 1300, "backward": 1700, "update": 1150}


@pytest.mark.parametrize("optimizer", ["adamw", "muon_adamw"])
def test_the_rehearsal_is_what_is_measured(optimizer, tmp_path):
    settings = ProfileSettings(batch_size=2, context_length=32, optimizer=optimizer, steps=1, warmup=1)
    model = Transformer(CONFIG)
    model.init_weights(0)
    profile, recorder = profile_model(model, settings, machine=MACHINE)
    rows, step = phase_memory(model, profile, recorder)
    assert [row.phase for row in rows] == ["steady", "forward", "backward", "update"]
    assert all(abs(row.error) < 0.02 for row in rows)
    assert rows[0].measured == profile.memory.resident_bytes  # Muon's one state is not counted as two
    page = write_memory(tmp_path / "memory.html", profile, rows, step)
    assert all(word in page.read_text() for word in ("predicted", "measured", "backward", "steady"))


def test_inference_has_no_phases():
    model = Transformer(CONFIG)
    settings = ProfileSettings(batch_size=1, context_length=8, phase="prefill", steps=1, warmup=1)
    profile, recorder = profile_model(model, settings, machine=MACHINE)
    with pytest.raises(ValueError, match="those of training, not of prefill"):
        phase_memory(model, profile, recorder)


def test_bars_and_their_table_say_the_same():
    rows = [PhaseMemory("steady", 2**20, 2**20), PhaseMemory("forward", 2**22, 5 * 2**20)]
    assert rows[1].error == 0.25
    drawing = str(phases_svg(rows))
    assert "4.0" in drawing and "5.0" in drawing and "forward" in drawing
    assert phases_table(rows).rows[1] == ["forward", "4.00 MiB", "5.00 MiB", "+25.0%", "3.00 MiB", "4.00 MiB"]


def test_a_long_step_keeps_its_peak():
    points = tuple((float(i), 7 if i == 501 else 1) for i in range(5000))
    kept = _highest(points)
    assert len(kept) <= 400 and (501.0, 7) in kept
    step = MemorySpans(points, {"forward": (0.0, 100.0), "update": (4000.0, 4999.0)})
    assert "backward" in str(timeline_svg(step, 1))
