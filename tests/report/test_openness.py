import json

import pytest

from groundup.report.openness import openness
from groundup.report.run import read_run


def change(path, **values):
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps(content))


def test_all_there_is_fully_open(fake_run):
    found = openness(read_run(fake_run))
    assert found.level == "fully open"
    assert {item.name: item.found for item in found.items}["code version"] == "commit 0123456789ab"


def test_each_level_needs_all_of_the_one_below(fake_run):
    change(fake_run / "plan.json", data={"licence": "CC0"})
    assert openness(read_run(fake_run)).level == "open-weight with its record"
    (fake_run / "metrics.jsonl").unlink()
    assert openness(read_run(fake_run)).level == "open-weight"
    (fake_run / "tokenizer.json").unlink()
    assert openness(read_run(fake_run)).level == "closed"


@pytest.mark.parametrize("licence", ["not stated: the user's own files", "unknown", "", None, []])
def test_a_licence_that_is_not_known_is_none(fake_run, licence):
    plan = json.loads((fake_run / "plan.json").read_text())
    change(fake_run / "plan.json", data={**plan["data"], "licence": licence})
    assert openness(read_run(fake_run)).level == "open-weight with its record"


def test_a_release_is_a_code_version_and_no_commit_is_needed(fake_run):
    change(fake_run / "env.json", commit=None)
    assert openness(read_run(fake_run)).level == "fully open"
    change(fake_run / "env.json", versions={})
    assert openness(read_run(fake_run)).level == "open-weight with its record"


def test_seed_zero_is_a_seed(fake_run):
    change(fake_run / "config.json", groundup={"build": {"seed": 0}})
    assert openness(read_run(fake_run)).level == "fully open"


def test_negative_results_are_looked_for(fake_run):
    def found():
        return {item.name: item.found for item in openness(read_run(fake_run)).items}["negative results"]

    assert not found()
    (fake_run / "NEGATIVE_RESULTS.md").write_text("It did not help.")
    assert found()
