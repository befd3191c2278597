"""`groundup history`: what it takes, what it prints and what it refuses."""

import json

import pytest

from groundup import cli, scaling

SMALL = ["d_model=32", "num_layers=1", "context_length=16", "batch_size=2", "vocab_size=270", "steps=4", "order=3",
         "guesses=50", "longest_block=3", "beside=0", "text_bytes=150000", "scored_bytes=1000", "tune_share=0",
         "--seeds", "2", "--device", "cpu"]  # fmt: skip


def call(capsys, *words):
    code = cli.main(["history", *map(str, words)])
    shown = capsys.readouterr()
    last = shown.out.splitlines()[-1] if shown.out else ""
    return code, shown, json.loads(last) if last.startswith("{") else None


@pytest.mark.slow
def test_a_history_prints_its_tables_and_one_json_line(tmp_path, capsys):
    code, shown, result = call(capsys, *SMALL, "--json", "--out", tmp_path / "run")
    assert code == 0 and "run 8 of 8" in shown.err and "rungs: unigram, ngram" in shown.err
    assert result["order"] == 3 and result["settings"]["match"] == "parameters"
    assert all(row["name"] in shown.out for row in result["rungs"])
    assert "zstd_19" in shown.out and "The order of the textbook" in shown.out
    page = (tmp_path / "run" / "report.html").read_bytes()
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").read_bytes() == page


def test_a_dry_run_shows_the_rungs_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown, result = call(capsys, *SMALL, "--dry-run", "--json")
    sizes = {row["name"]: row["parameters"] for row in result["rungs"]}
    assert code == 0 and sizes["ngram"] is None and sizes["lstm"] == pytest.approx(sizes["gpt"], rel=0.01)
    assert "neural_ngram" in shown.out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch, begun):
    def stop(*arguments, **options):
        if begun:
            (tmp_path / "run" / "neural").mkdir(parents=True)
            (tmp_path / "run" / "neural" / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "history", stop)
    code, shown, _ = call(capsys, *SMALL, "--out", tmp_path / "run")
    assert code == 130 and (f"groundup history --resume {tmp_path / 'run'}" in shown.err) == begun
    assert ("nothing to go on with" in shown.err) != begun


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["ordr=3"], "unknown setting 'ordr'; did you mean 'order'"),
        (["d_modl=3"], "unknown setting 'd_modl'; did you mean 'd_model'"),
        (["order=1"], "must be from 2 to"),
        (["seeds=3", "--seeds", "4"], "seeds= and its option are the same setting"),
        (["--seeds", "1"], "one run says nothing"),
        (["--resume", "nowhere", "--seeds", "3"], "leave out 'seeds'"),
        (["--resume", "nowhere", "--seeds", "0"], "leave out 'seeds'"),
        (["--dry-run", "lengths=[1,2]"], "a history scores no longer contexts"),
        (["--resume", "nowhere"], "no history's config.json there"),
    ],
)
def test_what_is_refused(words, fault, capsys):
    code, shown, _ = call(capsys, *words)
    assert code == 1 and fault in shown.err


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit):
        cli.main(["history", "--help"])
    shown = capsys.readouterr().out
    assert all(f"{name}=" in shown for name in ("order", "rates", "budget_seconds")) and "lengths=" not in shown
    assert "match=parameters" in shown
