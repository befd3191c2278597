"""`groundup flops`: shares over a sweep, as a table, as JSON and as a page."""

import json

import pytest

from groundup import cli
from groundup.cli_flops import parse_sweep


def call(capsys, *words):
    code = cli.main(["flops", *map(str, words)])
    shown = capsys.readouterr()
    last = shown.out.splitlines()[-1] if shown.out else ""
    return code, shown, json.loads(last) if last.startswith("[") else []


def test_context_of_two_models_as_table_json_and_page(tmp_path, capsys):
    page = tmp_path / "flops.html"
    words = ["gpt2", "gpt2-medium", "--sweep", "context_length=1k,..,4k", "--html", page, "--json"]
    code, shown, rows = call(capsys, *words)
    assert code == 0 and f"wrote {page}" in shown.out and "Where the FLOPs are" in page.read_text()
    assert [(r["label"], r["context_length"]) for r in rows] == [
        (f"{name}, {n:,}", n) for name in ("gpt2", "gpt2-medium") for n in (1024, 2048, 4096)
    ]
    attention = [r["share"]["attention"] for r in rows[:3]]
    assert attention == sorted(attention) and f"{attention[-1]:.2%}" in shown.out


def test_a_wider_model_spends_less_on_attention_and_head(capsys):
    _, _, rows = call(capsys, "num_layers=4", "context_length=2k", "--sweep", "d_model=256,512,1k", "--json")
    assert [r["label"] for r in rows] == ["256", "512", "1,024"] and {r["context_length"] for r in rows} == {2048}
    for part, order in (("attention", -1), ("head and loss", -1), ("feed-forward", 1)):
        shares = [r["share"][part] for r in rows]
        assert shares == sorted(shares, reverse=order < 0)


def test_a_setting_reaches_into_a_published_model_and_the_square_is_larger(capsys):
    _, _, plain = call(capsys, "gpt2", "--json")
    _, _, wide = call(capsys, "gpt2", "blocks.0.ffn.d_ff=6144", "--square", "--json")
    assert wide[0]["flops"]["feed-forward"] == 2 * plain[0]["flops"]["feed-forward"]
    assert wide[0]["flops"]["attention"] > 1.9 * plain[0]["flops"]["attention"]
    assert plain[0]["context_length"] == 1024


def test_dots_double_up_to_the_last():
    assert parse_sweep("d_model=96,..,400") == ("d_model", [96, 192, 384, 400])
    assert parse_sweep("context_length=1k,4k") == ("context_length", [1024, 4096])


@pytest.mark.parametrize(("words", "message"), [
    (["gpt3"], "is not among the published ones"),
    (["--sweep", "d_model"], "expected key=value,value"),
    (["--sweep", "d_model=..,4k"], "expected key=value,value"),
    (["--sweep", "d_model=wide"], "'wide' is no size"),
    (["--sweep", "context_length=0"], "'0' is no size"),
    (["num_layer=2"], "did you mean 'num_layers'"),
])  # fmt: skip
def test_mistakes_are_answered_in_words(capsys, words, message):
    code, shown, _ = call(capsys, *words)
    assert code == 1 and message in shown.err
