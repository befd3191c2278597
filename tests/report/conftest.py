"""An invented run folder, as a build leaves it. Every figure in it is made up."""

import json
import math

import pytest


def records(steps=120):
    for step in range(10, 10 * steps + 1, 10):
        loss = 3.4 + 4.8 * math.exp(-step / 90) + 0.04 * math.sin(step)
        yield {
            "step": step,
            "loss": loss,
            "tokens": step * 8192,
            "tokens_per_second": 21_000 + 900 * math.cos(step / 40),
            "mfu": 0.41,
            "lr": 3e-3 * min(1, step / 100, (10 * steps + 20 - step) / 300),
            "grad_norm": 0.7,
            "epoch": step / 600,
        }


@pytest.fixture
def fake_run(tmp_path):
    """A finished run with everything in it."""
    run = tmp_path / "fable-run"
    (run / "samples").mkdir(parents=True)
    (run / "chat").mkdir()

    def write(name, value):
        (run / name).write_text(json.dumps(value), "utf-8")

    predicted = {
        "total_seconds": 600.0, "step_seconds": 0.36, "tokens_per_second": 22_750.0,
        "peak_memory_bytes": 3_100_000_000, "bits_per_byte": 1.93, "bits_per_byte_error": 0.05,
        "nats_per_token": 4.1,
    }  # fmt: skip
    write(
        "config.json",
        {
            "model_type": "llama", "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6,
            "groundup": {"build": {"seed": 3, "budget_seconds": 600.0}, "model": {"d_model": 256}},
        },
    )  # fmt: skip
    write(
        "env.json",
        {
            "python": "3.11.9", "platform": "Imaginux", "device": "Imaginary CPU (2 cores)", "cuda": None,
            "versions": {"groundup": "0.0.0", "torch": "9.9"}, "commit": "0123456789abcdef0123",
        },
    )  # fmt: skip
    write(
        "plan.json",
        {
            "machine": {"name": "Imaginary CPU", "threads": 2, "bandwidth": 2.1e10, "memory_bytes": 8e9},
            "plan": {
                "batch_size": 32, "learning_rate": 0.003, "recompute": 1, "warmup_steps": 20, "model": {"d_model": 256},
                "seconds_per_step": 0.36, "train_seconds": 520.0, "steps": 1300, "tokens": 9_830_400, "epochs": 3.4,
                "bits_per_byte": 1.93, "bytes_per_token": 4.2, "peak_bytes": 3_100_000_000, "parameters": 5_678_901,
            },
            "predicted": predicted,
            "data": {
                "inputs": ["/secret/place/fables.txt"], "files": 1, "hashes": {"/secret/place/fables.txt": "ab" * 32},
                "documents": 210, "train_bytes": 10_800_000, "held_out_bytes": 540_000, "licence": "CC0",
            },
            "notes": ["the text is short: a smaller model was chosen"],
        },
    )  # fmt: skip
    write(
        "result.json",
        {
            "bits_per_byte": 1.951, "parameters": 5_678_901, "tokens": 9_830_400, "seconds": 588.0,
            "budget_seconds": 600.0, "epochs": 3.2, "predicted": predicted,
            "baselines": {"zstd_19": 2.354, "unigram": 3.61, "kneser_ney_5": 2.121},
            "measured": {"total_seconds": 588.0, "step_seconds": 0.42, "tokens_per_second": 19_500.0,
                         "peak_memory_bytes": 3_050_000_000, "bits_per_byte": 1.951, "nats_per_token": 4.13},
            "held_out": {"tokens": 130_000, "bytes": 540_000, "documents": 12, "policy": "Every document alone."},
            "stages": [
                {"name": "tokenizer", "seconds": 21.0, "predicted_seconds": 18.0},
                {"name": "pretrain", "seconds": 505.0, "predicted_seconds": 520.0},
                {"name": "evaluate", "seconds": 24.0, "predicted_seconds": None},
                {"name": "chat", "seconds": 38.0, "predicted_seconds": 30.0},
            ],
        },
    )  # fmt: skip
    write("training.json", {"steps": 1200, "tokens": 9_830_400, "seconds": 505.0, "step_seconds": 0.42, "epochs": 3.2})
    write("baselines.json", {"zstd_19": {"bits_per_byte": 2.354, "bytes": 540_000, "policy": "one stream"}})
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records()), "utf-8")
    curve = [
        {"step": s, "tokens": s * 8192, "bits_per_byte": 1.9 + 2 / s**0.5, "nats_per_token": 3.5 + 40 / s}
        for s in range(150, 1201, 150)
    ]
    (run / "curve.jsonl").write_text("".join(json.dumps(r) + "\n" for r in curve), "utf-8")
    write(
        "samples/base.json",
        [
            {"prompt": "The fox and the", "text": " crow met at the well, and neither spoke. " * 7, "temperature": 0.8},
            {
                "prompt": "",
                "text": "<script>alert('x')</script> & \"quotes\" \ud800 中文",
                "temperature": 0.8,
                "step": 900,
            },
        ],
    )
    write(
        "samples/chat.json",
        [{"prompt": "Tell me of the <b>fox</b>.", "text": "It ran away.", "temperature": 0.8, "chat": True}],
    )
    for name in ("model.safetensors", "tokenizer.json", "chat/config.json"):
        (run / name).write_text("{}", "utf-8")
    return run
