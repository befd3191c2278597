"""`groundup ablate`: what it takes, what it prints and what it refuses."""

import argparse
import json

import pytest

from groundup import cli, scaling
from groundup.cli_ablate_plan import KEYS, apply_plan

SMALL = ["d_model=16", "num_layers=1", "context_length=16", "batch_size=2", "vocab_size=270", "steps=4",
         "text_bytes=150000", "scored_bytes=1000", "tune_share=0", "--seeds", "2", "--device", "cpu"]  # fmt: skip


def call(capsys, *words):
    code = cli.main(["ablate", *map(str, words)])
    shown = capsys.readouterr()
    last = shown.out.splitlines()[-1] if shown.out else ""
    return code, shown, json.loads(last) if last.startswith("{") else None


def test_a_comparison_prints_its_tables_and_one_json_line(tmp_path, capsys):
    code, shown, result = call(capsys, *SMALL, "--variants", "relu_mlp", "--match", "parameters", "--json",
                               "--out", tmp_path / "run")  # fmt: skip
    assert code == 0
    assert "relu_mlp" in shown.out and result["comparisons"][0]["verdict"] in shown.out
    assert result["settings"]["match"] == "parameters" and result["settings"]["seeds"] == 2
    assert "losses" not in result["variants"][0] and len(result["variants"][0]["bits_per_byte"]) == 2
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"result.json", "report.html", "runs.jsonl", "plan.json"}
    assert "run 4 of 4" in shown.err


def test_lengths_are_a_setting(tmp_path, capsys):
    code, shown, result = call(capsys, *SMALL, "--variants", "learned", "lengths=[1,2]", 'scalings=["ntk"]', "--json",
                               "--out", tmp_path / "run")  # fmt: skip
    assert code == 0 and "2 x 16" in shown.out and "cannot" in shown.out
    assert list(result["variants"][0]["lengths"]) == ["as trained", "ntk"]


@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch, begun):
    def stop(*arguments, **options):
        if begun:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "ablate", stop)
    code, shown, _ = call(capsys, *SMALL, "--ladder", "--out", tmp_path / "run")
    assert code == 130 and (f"groundup ablate --resume {tmp_path / 'run'}" in shown.err) == begun
    assert ("nothing to go on with" in shown.err) != begun


@pytest.mark.parametrize("change", ["context_length=1000000", "vocab_size=200"])
def test_what_all_variants_share_is_no_variant(tmp_path, capsys, change):
    for more in (["--dry-run"], ["--out", tmp_path / "run"]):
        code, shown, _ = call(capsys, *SMALL, "--variant", "other", change, *more)
        assert code == 1 and f"variant 'other': {change}; all variants are trained with" in shown.err
    assert not (tmp_path / "run").exists()


def test_report_writes_a_comparisons_own_page_again(tmp_path, capsys):
    code, _, _ = call(capsys, *SMALL, "--variants", "relu_mlp", "--seeds", "2", "--out", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_bytes()
    assert code == 0 and cli.main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").read_bytes() == page


def test_a_dry_run_shows_the_variants_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown, result = call(capsys, *SMALL, "--ladder", "--more", "gqa", "--dry-run", "--json")
    assert code == 0 and list(tmp_path.iterdir()) == []
    assert [v["name"] for v in result["variants"]] == [
        "2017",
        "+rmsnorm",
        "+pre",
        "+swiglu",
        "+rope",
        "+no_bias",
        "+gqa",
    ]


def test_own_variants_of_the_command_line(capsys):
    _, _, result = call(capsys, *SMALL, "--variant", "wide", "blocks.0.ffn.d_ff=99", "--dry-run", "--json")
    assert [v["name"] for v in result["variants"]] == ["base", "wide"]


PLAN = """
variants = ["relu_mlp", "geglu"]
match = "parameters"
seeds = 2

[variant]
wide = ["blocks.0.ffn.d_ff=99"]

[settings]
d_model = 16
num_layers = 1
vocab_size = 270
context_length = 16
rates = [0.001, 0.002]
"""


def test_a_plan_is_the_command_line_in_a_file(tmp_path, capsys):
    (tmp_path / "shape.toml").write_text(PLAN)
    code, _, planned = call(capsys, "--plan", tmp_path / "shape.toml", "--dry-run", "--json")
    words = ["d_model=16", "num_layers=1", "vocab_size=270", "context_length=16", "rates=[0.001,0.002]"]
    words += ["--variants", "relu_mlp,geglu", "--match", "parameters", "--seeds", "2"]
    _, _, typed = call(capsys, *words, "--variant", "wide", "blocks.0.ffn.d_ff=99", "--dry-run", "--json")
    assert code == 0 and planned == typed and len(planned["variants"]) == 4


def test_files_of_a_plan_lie_beside_it(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"ladder": True, "more": ["gqa"], "files": ["a.txt"], "settings": {"steps": 3}}))
    options = argparse.Namespace(**{name: None for name in KEYS})
    apply_plan(options, str(path))
    assert options.files == [str(tmp_path / "a.txt"), "steps=3"]
    assert options.ladder is True and options.more == "gqa" and options.variant == []


@pytest.mark.parametrize(
    ("text", "words", "fault"),
    [
        ('varants = ["geglu"]', [], "unknown key 'varants'; did you mean 'variants'"),
        ('variants = "geglu"', [], "variants = 'geglu'; expected a list"),
        ("variants = [3]", [], "expected a list of texts"),
        ("seeds = true", [], "seeds = True; expected a whole number"),
        ("ladder = true", ["--seeds", "3"], "leave out 'seeds', or write it there"),
        ("ladder = true", ["d_model=16"], "leave out 'files'"),
        ("[variant]\nnarrow = 'd_head=8'", [], "variant.narrow = 'd_head=8'; expected a list of texts"),
        ("ladder = ", [], "cannot be read as a plan"),
        ("ladder = true\n[settings]\nd_modl = 3", [], "did you mean 'd_model'"),
        ("seeds = 3", [], "give one of --ladder"),
    ],
)
def test_a_plan_that_is_wrong_is_refused(tmp_path, capsys, text, words, fault):
    (tmp_path / "plan.toml").write_text(text)
    code, shown, _ = call(capsys, *words, "--plan", tmp_path / "plan.toml", "--dry-run")
    assert code == 1 and fault in shown.err


def test_a_plan_that_is_no_table_is_refused(tmp_path, capsys):
    (tmp_path / "plan.json").write_text("[]")
    code, shown, _ = call(capsys, "--plan", tmp_path / "plan.json")
    assert code == 1 and "holds a list; expected keys such as" in shown.err
    assert call(capsys, "--plan", tmp_path / "none.toml")[0] == 1


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "give one of --ladder"),
        (["--ladder", "--variants", "geglu"], "give one of --ladder"),
        (["--variants", "gelu"], "did you mean 'geglu'"),
        (["--variants", "geglu", "--more", "gqa"], "--more adds rungs"),
        (["--ladder", "d_modl=3"], "unknown setting 'd_modl'; did you mean 'd_model'"),
        (["--ladder", "seeds=3", "--seeds", "4"], "seeds= and its option are the same setting"),
        (["--ladder", "--seeds", "1"], "one run says nothing"),
        (["--ladder", "--budget", "soon"], "expected a time such as"),
        (["--resume", "nowhere", "--ladder"], "leave out 'ladder'"),
        (["--resume", "nowhere", "--leave-one-out"], "leave out 'leave-one-out'"),
        (["--resume", "nowhere", "--seeds", "0"], "leave out 'seeds'"),
        (["--resume", "nowhere"], "no config.json there"),
        (["--ladder", "steps=30", "--budget", "60s"], "steps= and --budget both say how long a run is"),
        (["--ladder", "steps=30", "budget_seconds=60"], "steps= and --budget both say how long a run is"),
    ],
)
def test_what_is_refused(words, fault, capsys):
    code, shown, _ = call(capsys, *words)
    assert code == 1 and fault in shown.err


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit):
        cli.main(["ablate", "--help"])
    shown = capsys.readouterr().out
    assert all(f"{name}=" in shown for name in ("tune_share", "rates", "match", "budget_seconds"))


@pytest.mark.parametrize(("kind", "verb"), [("history", "history"), ("sweep", "sweep lr")])
def test_another_verbs_folder_is_sent_there(kind, verb, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({kind: {}}))
    code, shown, _ = call(capsys, "--resume", str(tmp_path))
    assert code == 1 and f"this is a {kind}; go on with: groundup {verb} --resume {tmp_path}" in shown.err
