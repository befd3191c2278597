"""Going on with a run whose folder is damaged, or whose text changed: refused in a sentence, never guessed at."""

import shutil

import pytest

from groundup.build import resume
from groundup.files import read_json, write_json


@pytest.fixture
def planned(finished, tmp_path):
    """A copy of a finished run that remembers only to have been planned."""
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    state = read_json(run / "state.json")
    write_json(run / "state.json", {**state, "stages": state["stages"][:1]})
    return run


@pytest.mark.parametrize("name", ["plan.json", "config.json"])
@pytest.mark.parametrize("content", [{}, [], {"groundup": 1}])
def test_a_hollow_file_is_named(planned, name, content):
    write_json(planned / name, content)
    with pytest.raises(ValueError, match=r"plan\.json"):
        resume(planned)


def test_text_that_grew_is_refused(planned):
    config = read_json(planned / "config.json")
    config["groundup"]["data"]["files"] -= 1
    write_json(planned / "config.json", config)
    with pytest.raises(ValueError, match="the text changed since"):
        resume(planned)


def test_a_run_without_time_and_without_a_checkpoint_is_not_called_trained(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    state = read_json(run / "state.json")
    write_json(run / "state.json", {"elapsed_seconds": 1e6, "stages": state["stages"][:3]})
    assert state["stages"][3]["name"] == "pretrain"
    for file in (run / "checkpoints").glob("step-*/state.json"):
        file.write_text("{}")
    with pytest.raises(ValueError, match="no whole checkpoint"):
        resume(run)


def test_a_refused_folder_is_free_again(planned):
    write_json(planned / "plan.json", {})
    for _ in range(2):
        with pytest.raises(ValueError, match="begin a new run"):
            resume(planned)


def test_weights_that_changed_since_training_are_not_measured(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    state = read_json(run / "state.json")
    write_json(run / "state.json", {**state, "stages": [s for s in state["stages"] if s["name"] in FIRST]})
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (run / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(ValueError, match="changed or damaged since training"):
        resume(run)


FIRST = ("plan", "tokenizer", "baselines", "pretrain")
