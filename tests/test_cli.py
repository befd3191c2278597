"""The command line: fast help, did-you-mean, errors as sentences."""

import subprocess
import sys

import pytest

from groundup import cli


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from groundup import cli\n"
        "try: cli.main(['--help'])\n"
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
        (["build", "precision=fp17"], "is not one of"),
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


@pytest.mark.parametrize("arguments", [["build", "a", "--budgt", "9s"], ["report", "a", "--traceback", "b"]])
def test_words_that_belong_nowhere_are_wrong_use(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_training_that_diverges_ends_in_a_sentence(monkeypatch, capsys):
    def diverge(options):
        raise FloatingPointError("step 3: loss nan")

    monkeypatch.setitem(cli.VERBS, "build", cli.Verb("", cli.VERBS["build"].options, diverge))
    assert cli.main(["build"]) == 1
    assert "loss nan" in capsys.readouterr().err
