import pytest

from groundup import presets
from groundup.bench import decode, decode_engine, decode_ours
from groundup.bench.measure import Rates
from groundup.bench.race import Entry, Setting
from groundup.model import Transformer
from groundup.model.gguf import save_gguf

SHAPE = dict(vocab_size=64, d_model=32, num_layers=1, num_heads=2, d_ff=48, context_length=64)
FACTS = {"threads": 2, "environment": {"device": "a CPU"}}


def entry(program, name, rate, **facts):
    return Entry(Setting(program, name, {}), Rates((rate, rate)), facts=FACTS | facts)


ENTRIES = [
    entry(decode.OURS, "bf16", 90.0, bytes_per_step=400_000_000),
    entry(decode.OURS, "int8", 150.0, bytes_per_step=200_000_000),
    entry("llama.cpp", "bf16", 60.0),
    entry("llama.cpp", "q8_0", 120.0),
    entry("Hugging Face", "bf16", 30.0),
    entry(decode.CEILING, "reading", 40.0),
    Entry(Setting("vLLM", "bf16", {}), failure="vllm is not installed"),
]


def test_a_step_is_held_to_the_time_of_reading_its_bytes_and_to_peers_with_as_many_bits():
    mode = decode.MODES["batch-1"]
    record = decode.compare(mode, ENTRIES, decode.table(ENTRIES, mode, 128, 1000), {})
    assert record.details["roofline_fraction"] == {"bf16": pytest.approx(0.9), "int8": pytest.approx(0.75)}
    assert record.details["ratios"] == {
        "bf16": {"ratio": 1.5, "peer": "llama.cpp (bf16)"},
        "int8": {"ratio": 1.25, "peer": "llama.cpp (q8_0)"},
    }
    assert record.ratio == 1.25 and record.ours == 150.0 and record.peer == 120.0


def test_tokens_per_second_count_the_batch_or_the_prompt():
    rows = decode.table(ENTRIES, decode.MODES["batch-8"], 128, 1000)
    assert rows[0]["rate"] == 8 * 90 and rows[0]["gflops"] == pytest.approx(2 * 1000 * 720 / 1e9)
    rows = decode.table(ENTRIES[2:6], decode.MODES["prefill"], 128, 10**9)
    assert rows[0]["rate"] == 128 * 60 and rows[0]["roofline"] == pytest.approx(2 * 128 * 60 / 400)


def test_a_program_that_is_missing_says_so():
    row = decode.table(ENTRIES, decode.MODES["batch-1"], 128, 1000)[-1]
    assert row == {"program": "vLLM", "setting": "bf16", "note": "vllm is not installed"}


@pytest.mark.parametrize("mode", ["decode", "prefill"])
def test_our_side_runs_steps_and_counts_their_bytes(tmp_path, mode):
    model = Transformer(presets.llama(**SHAPE))
    save_gguf(model, tmp_path / "bf16.gguf", dtype="bf16")
    options = dict(folder=str(tmp_path), batch=2, prompt=20, new=4, threads=1, weights="bf16", mode=mode, shape=SHAPE)
    facts, run = decode_ours.prepare(options)
    # Products have whole blocks of 32 by 32: qkv, out, gate and up, down, head; then keys and values.
    products = 32 * (96 + 32 + 2 * 64 + 64 + 64)
    assert facts["bytes_per_step"] == 2 * products + 2 * 2 * 32 * (20 + 2) * 2
    assert run(6).get("seconds", 1.0) > 0


def test_the_engine_is_held_to_peers_by_itself():
    entries = [*ENTRIES, entry(decode.ENGINE, "bf16", 54.0)]
    mode = decode.MODES["batch-1"]
    record = decode.compare(mode, entries, decode.table(entries, mode, 128, 1000), {})
    assert record.details["ratios"]["engine bf16"] == {"ratio": pytest.approx(0.9), "peer": "llama.cpp (bf16)"}
    assert record.ratio == pytest.approx(0.9) and record.ours == 54.0


def test_the_engine_goes_on_where_it_stopped_and_begins_again_when_it_is_through(tmp_path):
    shape = SHAPE | {"vocab_size": 300}
    save_gguf(Transformer(presets.llama(**shape)), tmp_path / "bf16.gguf", dtype="bf16")
    options = dict(folder=str(tmp_path), batch=2, prompt=20, new=4, threads=1, weights="bf16", mode="decode")
    _, run = decode_engine.prepare(options | {"shape": shape})
    assert all(run(steps)["seconds"] > 0 for steps in (1, 2, 7))


def test_the_model_is_written_once(tmp_path):
    first = decode.write_model(SHAPE, tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = decode.write_model(SHAPE, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    assert first.head_weight.equal(second.head_weight) and {"bf16.gguf", "q8_0.gguf", "model.safetensors"} <= set(
        written
    )
