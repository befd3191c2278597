"""The command line: fast help, did-you-mean, errors as sentences."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest

from groundup import cli


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["tokenizer", "train", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from groundup import cli\n"
        f"try: cli.main({arguments})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'jinja2', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_verb_has_help(capsys):
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, "--help"])
        assert stop.value.code == 0
        assert verb in capsys.readouterr().out


def test_unknown_verb_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["biuld"])
    assert stop.value.code == 2
    assert "did you mean 'build'" in capsys.readouterr().err


def test_nothing_prints_help_and_counts_as_wrong_use(capsys):
    assert cli.main([]) == 2
    assert "generate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--budget", "5s"], "smallest budget"),
        (["build", "--budget", "soon"], "expected a time"),
        (["build", "d_modle=3"], "did you mean 'd_model'"),
        (["build", "d_model=0"], "at least 1"),
        (["build", "d_modle=3"], "unknown setting 'd_modle'"),
        (["build", "d_modle=3"], "groundup build --help"),
        (["build", "precision=fp17"], "precision: expected one of 'auto', 'fp32', 'bf16', 'int8', not 'fp17'"),
        (["build", "compile=maybe"], "compile: expected true or false, not 'maybe'"),
        (["build", "d_model=sixty"], "d_model: expected a whole number, not 'sixty'"),
        (["build", "*.txt"], "*.txt: this pattern matched nothing"),
        (["build", "folder/of=notes.txt"], "folder/of=notes.txt: no such file"),
        (["build", "no/such/file.txt"], "no/such/file.txt"),
        (["build", "--resume", "nowhere"], "nowhere"),
        (["generate", "nowhere"], "nowhere"),
        (["generate", "nowhere", "--temperature", "-1"], "temperature"),
        (["eval", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["bench", "tokenise"], "tokenise"),
        (["tokenizer", "encode", "nowhere", "x"], "nowhere"),
    ],
)
def test_mistakes_are_sentences_not_tracebacks(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = cli.main(arguments)
    shown = capsys.readouterr()
    assert code in (1, 2)
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []


def test_words_may_stand_on_both_sides_of_an_option(monkeypatch):
    seen = []
    verb = cli.VERBS["build"]
    monkeypatch.setitem(cli.VERBS, "build", cli.Verb("", verb.options, lambda options: seen.append(options.files) or 0))
    assert cli.main(["build", "a.txt", "--budget", "60s", "d_model=64", "--json", "b.txt"]) == 0
    assert seen == [["a.txt", "d_model=64", "b.txt"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "a", "--budgett", "9s"], "groundup build: unknown option --budgett; did you mean '--budget'?"),
        (["build", "a", "--budgett=9s"], "groundup build: unknown option --budgett; did you mean '--budget'?"),
        (["tokenizer", "train", "a", "--out", "b", "--vocabsize", "9"], "did you mean '--vocab-size'?"),
        (["eval", "a", "--zzzz"], "groundup eval: unknown option --zzzz\n"),
        (["report", "a", "--traceback", "b"], "groundup report: does not take 'b'"),
        (["generate", "a", "--max-tokens", "many"], "--max-tokens: expected a whole number, not 'many'"),
        (["generate", "a", "--top-p", "much"], "--top-p: expected a number, not 'much'"),
        (["report"], "groundup report: the following arguments are required: RUN"),
        (["--budget", "5m", "build"], "unknown option --budget; a command comes before its options"),
    ],
)
def test_wrong_use_is_answered_shortly(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in shown
    assert "usage:" not in shown
    assert re.search(r"^see: groundup.* --help$", shown, re.MULTILINE)
    assert len(shown.splitlines()) == 2


def test_training_that_diverges_ends_in_a_sentence(monkeypatch, capsys):
    def diverge(options):
        raise FloatingPointError("step 3: loss nan")

    monkeypatch.setitem(cli.VERBS, "build", cli.Verb("", cli.VERBS["build"].options, diverge))
    assert cli.main(["build"]) == 1
    assert "loss nan" in capsys.readouterr().err


def help_of(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([*verb.split(), "--help"])
    return capsys.readouterr().out


def test_help_of_build_lists_every_setting_with_its_default_and_meaning(capsys):
    from groundup.build.settings import BuildSettings

    shown = help_of("build", capsys)
    for field in dataclasses.fields(BuildSettings):
        default = field.default if isinstance(field.default, str) else json.dumps(field.default)
        assert re.search(rf"^  {field.name}={re.escape(default)} +\S+", shown, re.MULTILINE), field.name


def test_every_default_that_help_shows_can_be_given(capsys):
    from groundup.build.settings import BuildSettings, settings_from

    words = re.findall(r"^  (\w+=\S+) ", help_of("build", capsys), re.MULTILINE)
    assert len(words) == len(dataclasses.fields(BuildSettings))
    assert settings_from(None, None, words) == BuildSettings()


@pytest.mark.parametrize("verb", ["build", "generate", "chat", "eval", "tokenizer train", "doctor"])
def test_help_shows_the_default_of_every_option_with_a_value(verb, capsys):
    options = help_of(verb, capsys).partition("\noptions:\n")[2].partition("\n\n")[0]
    taking_values = [o for o in re.split(r"\n(?=  -)", options) if re.match(r"\s+--[\w-]+ \[?[A-Z]", o)]
    lacking = [o.split()[0] for o in taking_values if "(default" not in o]
    assert taking_values
    assert set(lacking) <= {"--resume", "--out"}


@pytest.fixture
def folder_of_runs(tmp_path, monkeypatch):
    """runs/ with four runs in it, of which d is the newest, and something else."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("d", "b", "a", "c")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        config = tmp_path / "runs" / name / "config.json"
        config.write_text("{}")
        os.utime(config, (10_000 - age, 10_000 - age))
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("x")
    return tmp_path / "runs"


@pytest.mark.parametrize("command", [["generate"], ["chat"], ["eval"], ["report"], ["build", "--resume"]])
def test_a_folder_of_runs_is_no_run(command, folder_of_runs, capsys):
    assert cli.main([*command, "runs"]) == 1
    shown = capsys.readouterr().err
    assert "runs: no run itself, but a folder that holds 4 runs; name one (newest first): " in shown
    assert "runs/d, runs/b, runs/a, ..." in shown.replace(os.sep, "/")


def test_a_run_with_a_model_inside_is_a_run(folder_of_runs, capsys):
    (folder_of_runs / "a" / "chat").mkdir()
    (folder_of_runs / "a" / "chat" / "config.json").write_text("{}")
    assert cli.main(["report", "runs/a"]) == 0
    assert cli.main(["report", "runs/notes"]) == 1
    assert "runs/notes: not a run folder" in capsys.readouterr().err


def test_eval_says_little_and_its_json_all(monkeypatch, capsys):
    from groundup.build import measure

    result = {"bits_per_byte": 1.25, "bytes": 1, "documents": 1, "policy": "Every document is scored alone. " * 9}
    monkeypatch.setattr(measure, "evaluate_files", lambda *_, **__: result)
    assert cli.main(["eval", "a", "--json"]) == 0
    line, whole = capsys.readouterr().out.splitlines()
    assert line == "1.2500 bits per byte on 1 byte in 1 document"
    assert json.loads(whole) == result
