"""What is said of checkpoints, models and runs, held to what was put into them."""

import json
import shutil

import numpy as np
import pytest
import torch

from groundup import presets
from groundup.gguf import KINDS, write_gguf
from groundup.inspection import inspect_path
from groundup.model import Transformer
from groundup.model.pretrained import save_pretrained
from groundup.optim import AdamW
from groundup.tensorfile import write_tensors
from groundup.train import checkpoint
from groundup.train.snapshot import capture, fingerprint


@pytest.fixture
def saved(tmp_path):
    """A checkpoint after one step of AdamW."""
    model = Transformer(presets.llama(vocab_size=17, d_model=8, num_layers=1, num_heads=2))
    optimizer = AdamW(model.parameters(), lr=1e-3)
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    optimizer.step()
    state = {"fingerprint": fingerprint(model, optimizer, None, {"seed": 5}), "threads": 2}
    path = checkpoint.save(tmp_path / "run" / "checkpoints", 7, tensors=capture(model, optimizer), state=state)
    return model, path


def test_a_checkpoint_keeps_what_changes_apart_from_what_was_chosen(saved):
    model, path = saved
    found = inspect_path(path)
    count = sum(p.numel() for p in model.parameters())
    totals = found.totals()
    assert found.kind == "checkpoint"
    assert totals["weights"][1:] == (count, 4 * count)
    assert totals["optimizer state: exp_avg"][1:] == totals["optimizer state: exp_avg_sq"][1:] == (count, 4 * count)
    assert not any(
        "weight" in part for part in totals if part.startswith("optimizer")
    )  # weights are no optimizer state
    settings = dict(found.settings)
    assert "0.001" not in settings["optimizer"]  # the rate may change on the way
    assert '"class": "AdamW"' in settings["optimizer"]
    assert json.loads(settings["given"]) == {"seed": 5}
    assert ("step", "7") in found.facts
    assert ("threads", "2") in found.facts


def test_a_damaged_checkpoint_is_found_where_all_bytes_are_read(saved):
    _, path = saved
    file = path / "tensors-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert ("hashes", "not checked; give --verify") in inspect_path(path).facts
    with pytest.raises(ValueError, match="its bytes changed since it was saved"):
        inspect_path(path, verify=True)
    run = path.parent.parent
    facts = dict(inspect_path(run, verify=True).facts)
    assert facts["step-7"].startswith("damaged: ")
    assert dict(inspect_path(run).facts)["step-7"] == "not checked; give --verify"


def test_a_run_says_what_is_absent(saved):
    _, path = saved
    run = path.parent.parent
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (run / "plan.json").write_text('{"seconds": 3}')
    found = inspect_path(run, verify=True)
    assert found.kind == "run"
    assert dict(found.facts) == {
        "config.json": "absent",
        "plan.seconds": "3",
        "result.json": "absent",
        "metrics.jsonl": "2 records",
        "step-7": "all files and tensors agree",
    }


def test_a_run_says_what_the_flight_recorder_has(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "flight.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"st')
    (tmp_path / "flight").mkdir()
    told = {"event": "skip", "diagnosis": {"kind": "activation", "where": "blocks.3.ffn.down"}}
    (tmp_path / "flight" / "step-17.json").write_text(json.dumps(told))
    (tmp_path / "flight" / "step-9.json").write_text("{")
    facts = dict(inspect_path(tmp_path).facts)
    assert facts["flight.jsonl"].startswith("2 sheets of norms by layer, steps 10 to 20")
    assert facts["flight/step-17.json"] == "skip: activation: blocks.3.ffn.down"
    assert facts["flight/step-9.json"] == "unreadable"


def test_a_model_folder_and_its_file(tmp_path):
    model = Transformer(presets.llama(vocab_size=17, d_model=8, num_layers=1, num_heads=2))
    save_pretrained(model, None, tmp_path / "model")
    found = inspect_path(tmp_path / "model", verify=True)
    count = sum(p.numel() for p in model.parameters())
    assert found.kind == "model folder"
    assert found.totals() == {"": (len(found.tensors), count, 4 * count)}
    assert dict(found.settings)["hidden_size"] == "8"
    assert all(len(digest) == 64 for _, _, digest in found.files)
    alone = inspect_path(tmp_path / "model" / "model.safetensors")
    assert (alone.kind, alone.tensors) == ("safetensors file", found.tensors)
    assert alone.files[0][2] == ""


def test_a_gguf_file(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, {"general.architecture": "llama"}, {"w": (KINDS["Q8_0"], np.ones((2, 32), np.float32))})
    found = inspect_path(path)
    assert [(t.name, t.shape, t.dtype, t.bytes) for t in found.tensors] == [("w", (2, 32), "Q8_0", 68)]
    assert ("general.architecture", "llama") in found.settings


def test_other_things_are_named(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="nothing is there"):
        inspect_path(tmp_path / "absent")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="a.txt: not one of the things that can be looked into: a .safetensors"):
        inspect_path(tmp_path / "a.txt")
    write_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(3)})
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match="a.safetensors"):
        inspect_path(tmp_path / "a.safetensors")
    path = saved[1]
    shutil.copy(path / "state.json", path / "manifest.json")
    with pytest.raises(ValueError, match="its own hash does not match"):
        inspect_path(path)


def test_texts_of_strangers_stay_on_one_line(tmp_path):
    model = Transformer(presets.llama(vocab_size=17, d_model=8, num_layers=1, num_heads=2))
    save_pretrained(model, None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"note": "a\x1b[31m\n" + "b" * 500}))
    note = dict(inspect_path(tmp_path).settings)["note"]
    assert note.startswith("a [31m b")
    assert len(note) == 80


def test_a_folder_of_results_is_a_run_and_lists_are_counted(tmp_path):
    (tmp_path / "result.json").write_text('{"order": 5}')
    (tmp_path / "config.json").write_text('{"history": {"order": 5}}')
    (tmp_path / "plan.json").write_text("[{}, {}]")
    found = inspect_path(tmp_path)
    assert found.kind == "run"
    assert ("result.order", "5") in found.facts
    assert ("plan.json", "2 entries") in found.facts


def test_a_model_folder_without_weights_is_named_as_such(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a config.json, but no weights \(\*\.safetensors\)"):
        inspect_path(tmp_path)
