"""`groundup sweep lr`: what it takes, what it prints and what it refuses."""

import json

import pytest

from groundup import cli, scaling

SMALL = ["d_model=16", "num_layers=1", "context_length=16", "batch_sizes=[2]", "vocab_size=270", "steps=8", "low=0.01",
         "high=0.04", "highest=0.04", "text_bytes=150000", "scored_bytes=1000", "--seeds", "2", "--device", "cpu",
         "--workers", "1"]  # fmt: skip


def call(capsys, *words):
    code = cli.main(["sweep", "lr", *map(str, words)])
    shown = capsys.readouterr()
    last = shown.out.splitlines()[-1] if shown.out else ""
    return code, shown, json.loads(last) if last.startswith("{") else None


def test_a_sweep_prints_its_table_and_one_json_line(tmp_path, capsys):
    folder = tmp_path / "run"
    code, shown, result = call(capsys, *SMALL, "--json", "--out", folder)
    assert code == 0
    (cell,) = result["cells"]
    assert [row["rate"] for row in cell["rates"]] == [0.01, 0.02, 0.04]
    assert f"{cell['best_tried']['bits_per_byte']:.4f}" in shown.out and "best tried" in shown.out
    assert {path.name for path in folder.iterdir()} >= {"result.json", "report.html", "runs.jsonl", "plan.json"}
    assert "run 6: rate" in shown.err
    page = (folder / "report.html").read_bytes()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == page
    assert call(capsys, "--resume", folder, "--workers", "1", "--json")[2]["cells"] == result["cells"]


def test_a_dry_run_shows_the_rates_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown, result = call(capsys, *SMALL, "--optimizer", "muon_adamw", "--dry-run", "--json")
    assert code == 0 and list(tmp_path.iterdir()) == []
    assert result["rates"] == [0.01, 0.02, 0.04] and result["optimizer"] == "muon_adamw"
    assert "rates   0.01, 0.02, 0.04, then up to the edge" in shown.out


@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch, begun):
    def stop(*arguments, **options):
        if begun:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "sweep_lr", stop)
    code, shown, _ = call(capsys, *SMALL, "--out", tmp_path / "run")
    assert code == 130 and (f"groundup sweep lr --resume {tmp_path / 'run'}" in shown.err) == begun


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["d_modl=3"], "unknown setting 'd_modl'; did you mean 'd_model'"),
        (["seeds=3", "--seeds", "4"], "seeds= and its option are the same setting"),
        (["low=0.1", "high=0.01"], "expected rising rates"),
        (["--budget", "soon"], "expected a time such as"),
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--resume", "nowhere", "--seeds", "3"], "leave out 'seeds'"),
        (["--resume", "nowhere", "--seeds", "0"], "leave out 'seeds'"),
        (["--resume", "nowhere"], "no sweep's config.json there"),
    ],
)
def test_what_is_refused(words, fault, capsys):
    code, shown, _ = call(capsys, *words)
    assert code == 1 and fault in shown.err


def test_other_things_are_not_swept(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["sweep", "depth"])
    assert left.value.code == 2
    assert "cannot sweep 'depth'" in capsys.readouterr().err


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", "--help"])
    shown = capsys.readouterr().out
    assert all(f"{name}=" in shown for name in ("low", "ratio", "edge_factor", "batch_sizes", "optimizer"))
