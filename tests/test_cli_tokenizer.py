"""The actions of `groundup tokenizer`: their tables, their JSON, their exit codes, and what they refuse."""

import json
import re
import subprocess
import sys

import pytest

from groundup import cli
from groundup.cli_tokenizer import ACTIONS
from groundup.tokenizer import Tokenizer

GERMAN = "Der Hund läuft über die Brücke, und die Katze schläft. "
ENGLISH = "The dog runs over the bridge, and the cat sleeps. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts in two languages by name, a table of them, and a tokenizer of the English ones."""
    root = tmp_path_factory.mktemp("texts")
    (root / "en.txt").write_text("<|endoftext|>".join(f"{ENGLISH}{n} times." for n in range(40)))
    (root / "de.txt").write_text("<|endoftext|>".join(f"{GERMAN}{n} Mal." for n in range(40)))
    (root / "rows.tsv").write_text("".join(f"en\t{ENGLISH}{n}\nde\t{GERMAN}{n}\n" for n in range(40)))
    Tokenizer.train_from_iterator([ENGLISH * 3], 280).save(root / "english")
    return root


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run `groundup tokenizer ...` among the texts: exit code, output, and the JSON at its end."""
    monkeypatch.chdir(folder)

    def call(*words):
        code = cli.main(["tokenizer", *map(str, words)])
        shown = capsys.readouterr()
        last = shown.out.splitlines()[-1] if shown.out else ""
        return code, shown, json.loads(last) if last.startswith("{") else None

    return call


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_help_with_its_defaults(action, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["tokenizer", action, "--help"])
    shown = capsys.readouterr().out
    options = shown.partition("\noptions:\n")[2].partition("\n\n")[0]
    taking_values = [o for o in re.split(r"\n(?=  -)", options) if re.match(r"\s+--[\w-]+ \[?[A-Z]", o)]
    lacking = {o.split()[0] for o in taking_values if "(default" not in " ".join(o.split())}
    assert stop.value.code == 0
    assert lacking <= {"--out", "--tokenizer"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from groundup import cli\n"
        "try: cli.main(['tokenizer', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'numba', 'regex', 'rich', 'groundup.tokenizer'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_verbs_that_were_there_before(run, folder):
    code, shown, summary = run("train", "en.txt", "--vocab-size", "300", "--out", folder / "again", "--json")
    assert (code, summary["vocab_size"]) == (0, 300)
    assert f"{folder / 'again'}: 300 tokens" in shown.out
    code, shown, _ = run("encode", "again", ENGLISH)
    assert shown.out.split() == [str(token) for token in Tokenizer.load(folder / "again").encode(ENGLISH)]
    _, decoded, _ = run("decode", "again", *shown.out.split())
    assert decoded.out == ENGLISH + "\n"


# compare ----------------------------------------------------------------------------------------------------------


def test_compare_shows_the_four_and_loaded_ones_by_file_and_language(run):
    code, shown, found = run("compare", "en.txt", "de.txt", "--tokenizer", "english", "--vocab-size", "400", "--json")
    assert code == 0
    names = ["character", "byte", "word", "BPE", "english"]
    assert [t["name"] for t in found["tokenizers"]] == names
    assert {row["group"] for row in found["rows"] if row["kind"] == "language"} == {"de", "en"}
    by_name = {row["tokenizer"]: row for row in found["rows"] if row["kind"] == "all"}
    assert by_name["byte"]["bytes_per_token"] == 1.0
    assert by_name["word"]["unknown"] > 0
    for heading in ("All text", "Bytes per token by file", "Bytes per token by language", "of it used", "1,114,112"):
        assert heading in shown.out
    assert all(name in shown.out for name in names)


def test_compare_measures_what_was_not_learned_from(run, folder):
    _, _, found = run("compare", "rows.tsv", "--train-fraction", "0.75", "--vocab-size", "300", "--json")
    assert found["texts"] == 20
    lines = (folder / "rows.tsv").read_text().splitlines()[-20:]
    measured = "".join(line.partition("\t")[2] for line in lines)
    assert found["measured_bytes"] == len(measured.encode())
    row = next(row for row in found["rows"] if row["tokenizer"] == "character" and row["kind"] == "all")
    assert row["bytes_per_token"] == len(measured.encode()) / len(measured)


def test_compare_says_what_words_a_vocabulary_lacks(run):
    code, shown, found = run("compare", "rows.tsv", "--vocab-size", "300", "--words", "--json")
    assert code == 0
    assert "unknown ones guessed as such or spelled out" in shown.out
    assert [score["vocab_size"] for score in found["words"]][0] == 10
    assert found["words"][0]["unknown_rate"] > found["words"][-1]["unknown_rate"] > 0


def test_compare_repeats_itself(run):
    arguments = ("compare", "rows.tsv", "--vocab-size", "300", "--resamples", "50", "--json")
    assert run(*arguments)[2] == run(*arguments)[2] != run(*arguments, "--seed", "1")[2]


def test_compare_reads_no_more_than_it_is_told(run):
    _, shown, found = run("compare", "rows.tsv", "--vocab-size", "300", "--limit-mb", "0.001", "--json")
    assert "read the first 0.001 MB only" in shown.err
    assert 1000 <= found["learned_from_bytes"] + found["measured_bytes"] < 1100


def test_tokenizers_of_one_name_are_told_apart_by_their_paths(run, folder):
    Tokenizer.load(folder / "english").save(folder / "copy" / "english")
    _, _, found = run("compare", "rows.tsv", "--vocab-size", "300", "--tokenizer", "english", "--tokenizer",
                      "copy/english", "--json")  # fmt: skip
    assert [t["name"] for t in found["tokenizers"]][-2:] == ["english", "copy/english"]


# sweep ------------------------------------------------------------------------------------------------------------


def test_sweep_measures_every_size(run):
    code, shown, found = run("sweep", "rows.tsv", "--vocab-sizes", "300", "260", "--d-model", "64", "--num-layers", "2",
                             "--context-bytes", "100", "--json")  # fmt: skip
    small, large = found["rows"]
    assert code == 0
    assert (small["vocab_size"], large["vocab_size"]) == (260, 300)
    assert small["bytes_per_token"] < large["bytes_per_token"]
    assert large["embedding_parameters"] == 300 * 64 * 2
    assert large["attention_to_bytes"] == pytest.approx(large["bytes_per_token"] ** -2)
    assert "64 channels in 2 layers" in shown.out


def test_flops_per_byte_are_those_of_the_accounting(run):
    from groundup import accounting, presets

    _, _, found = run("sweep", "rows.tsv", "--vocab-sizes", "300", "--d-model", "64", "--num-layers", "2", "--json")
    row = found["rows"][0]
    config = presets.llama(vocab_size=300, d_model=64, num_layers=2, context_length=row["context_tokens"])
    expected = accounting.training_flops_per_token(config, row["context_tokens"]) / row["bytes_per_token"]
    assert row["flops_per_byte"] == pytest.approx(expected)
    assert row["head_flops_per_byte"] == pytest.approx(6 * 64 * 300 / row["bytes_per_token"])
    pairs = row["context_tokens"] + 1  # of causal attention, per token: (n + 1) / 2
    assert row["attention_flops_per_byte"] == pytest.approx(6 * 2 * 64 * pairs / row["bytes_per_token"])


def test_sweep_goes_as_far_as_the_text_allows(run):
    _, _, found = run("sweep", "rows.tsv", "--tied", "--json")
    sizes = [row["vocab_size"] for row in found["rows"]]
    assert sizes == sorted(sizes)
    assert len(sizes) == 1 and 300 < sizes[0] < 512
    _, _, found = run("sweep", "rows.tsv", "--tokenizer", "english", "--vocab-sizes", "258", "--json")
    assert [row["vocab_size"] for row in found["rows"]] == [258]


# audit ------------------------------------------------------------------------------------------------------------


def test_a_sound_tokenizer_passes_and_a_limit_fails_it(run):
    code, shown, found = run("audit", "english", "--json")
    assert (code, found["findings"], found["unseen"], found["taxes"]) == (0, [], None, None)
    assert "nothing beyond what is let pass" in shown.out
    code, shown, found = run("audit", "english", "rows.tsv", "--max-tax", "1.1", "--max-unseen", "0.1", "--json")
    assert code == 1
    assert len(found["findings"]) == 2
    assert found["reference"] == "en"
    assert found["taxes"][0]["language"] == "de"
    assert "FOUND 'de' takes" in shown.out
    assert "of the vocabulary not in the texts" in shown.out


def test_an_unsound_tokenizer_fails(run, folder):
    vocab = {byte: bytes([byte]) for byte in range(256)} | {256: b"glitch"}
    Tokenizer(vocab, [], ["<a>", "<a><b>"]).save(folder / "unsound")
    code, shown, found = run("audit", "unsound", "--json")
    assert code == 1
    assert found["unreachable"] == [{"id": 256, "token": "glitch", "reason": "merges", "certain": True}]
    assert found["overlapping_specials"] == [["<a><b>", "<a>"]]
    assert "'glitch'" in shown.out
    assert run("audit", "unsound", "--max-unreachable", "1", "--max-overlaps", "1")[0] == 0


def test_irregular_numbers_fail_when_asked(run, folder):
    vocab = {byte: bytes([byte]) for byte in range(256)} | {256: b"19"}
    Tokenizer(vocab, [(b"1", b"9")], []).save(folder / "numbers")
    assert run("audit", "numbers")[0] == 0
    code, shown, _ = run("audit", "numbers", "--regular-digits")
    assert code == 1
    assert "FOUND numbers are cut irregular from 2 digits on" in shown.out
    assert run("audit", "english", "--regular-digits")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "nowhere"], "nowhere"),
        (["audit", "english", "nowhere.txt"], "nowhere.txt"),
        (["audit", "english", "--max-tax", "2"], "name FILES"),
        (["audit", "english", "en.txt", "--max-tax", "2"], "two or more languages"),
        (["audit", "english", "rows.tsv", "--reference", "xx"], "'xx'; there are: de, en"),
        (["audit", "english", "--max-unreachable", "few"], "expected a whole number"),
    ],
)
def test_what_cannot_be_audited_is_no_finding(run, arguments, message, capsys):
    try:
        code, shown, _ = run(*arguments)
    except SystemExit as stop:
        code, shown = stop.code, capsys.readouterr()
    assert code == 2
    assert message in shown.err
    assert "Traceback" not in shown.err


# explore, convert, shards -----------------------------------------------------------------------------------------


def test_explore_writes_a_page(run, tmp_path):
    code, shown, _ = run("explore", "english", "--out", tmp_path / "page.html")
    assert (code, shown.out.strip()) == (0, str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "english" in page and "<html" in page


def test_explore_has_something_to_show_by_itself(run, tmp_path):
    assert run("explore", "--out", tmp_path / "page.html")[0] == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["hugging-face", "gpt2"])
def test_converted_tokenizers_give_the_same_ids(run, folder, tmp_path, kind):
    code, shown, summary = run("convert", "english", tmp_path / "there", "--to", kind, "--json")
    assert (code, summary["tokens"], summary["pattern"]) == (0, 280, "gpt2")
    back = ["convert", tmp_path / "there", tmp_path / "back", "--to", "hugging-face"]
    assert run(*back, *(["--special-tokens", "<|endoftext|>=279"] if kind == "gpt2" else []))[0] == 0
    text = ENGLISH + GERMAN
    whole, again = Tokenizer.load(folder / "english"), Tokenizer.load(tmp_path / "back")
    assert again.encode(text) == whole.encode(text)
    assert again.special_tokens == whole.special_tokens


def test_a_rank_file_is_told_its_pattern_and_special_tokens(run, folder, tmp_path):
    assert run("convert", "english", tmp_path / "x.tiktoken", "--to", "tiktoken")[0] == 0
    assert run("convert", tmp_path / "x.tiktoken", tmp_path / "back", "--to", "hugging-face", "--pattern", "gpt2",
               "--special-tokens", "<|endoftext|>=279")[0] == 0  # fmt: skip
    whole, again = Tokenizer.load(folder / "english"), Tokenizer.load(tmp_path / "back")
    assert again.encode(ENGLISH) == whole.encode(ENGLISH)
    assert again.end_of_text == 279


def test_shards_can_be_trained_on(run, folder, tmp_path):
    from groundup.data import ShardSet

    code, shown, summary = run("shards", "en.txt", "--tokenizer", "english", "--out", tmp_path / "shards", "--json")
    shards = ShardSet.open(tmp_path / "shards")
    assert code == 0
    assert summary["tokens"] == shards.num_tokens
    assert (summary["documents"], summary["dtype"], summary["files"]) == (40, "uint16", 1)
    assert "MB/s" in shown.out
    first = (folder / "en.txt").read_text().partition("<|endoftext|>")[0]
    ids = Tokenizer.load(folder / "english").encode(first)
    assert shards.read(0, len(ids)).tolist() == ids


def test_shards_explain_what_length_costs(run, tmp_path):
    _, shown, summary = run("shards", "en.txt", "--tokenizer", "english", "--out", tmp_path / "shards", "--explain",
                            "--shard-tokens", "500", "--json")  # fmt: skip
    assert summary["files"] > 1
    assert "Attention grows with the square of tokens per byte" in shown.out
    rows = {(row["tokenizer"], row["context_bytes"]): row for row in summary["attention"]}
    here = rows["this tokenizer", 65536]
    assert here["attention_to_bytes"] == pytest.approx(summary["bytes_per_token"] ** -2, rel=0.001)
    assert rows["byte", 65536]["attention_share"] > rows["byte", 1024]["attention_share"]


def test_shards_that_are_there_are_kept(run, tmp_path):
    arguments = ("shards", "en.txt", "--tokenizer", "english", "--out", tmp_path / "shards")
    assert run(*arguments)[0] == 0
    code, shown, _ = run(*arguments)
    assert code == 1 and "holds shards already" in shown.err
    assert run(*arguments, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "nowhere.txt"], "nowhere.txt"),
        (["compare", "rows.tsv", "--train-fraction", "1"], "train fraction 1.0"),
        (["compare", "rows.tsv", "--vocab-size", "9"], "vocab_size 9"),
        (["compare", "rows.tsv", "--resamples", "0"], "--resamples 0"),
        (["compare", "rows.tsv", "--pattern", "gtp2"], "did you mean 'gpt2'"),
        (["compare", "rows.tsv", "--language-field", "tongue"], "cannot tell language and text"),
        (["sweep", "rows.tsv", "--vocab-sizes", "10"], "vocab_size 10"),
        (["sweep", "rows.tsv", "--context-bytes", "0"], "--context-bytes 0"),
        (["sweep", "rows.tsv", "--d-model", "63"], "d_model=63"),
        (["explore", "nowhere"], "nowhere"),
        (["convert", "nowhere", "x", "--to", "gpt2"], "nowhere"),
        (["shards", "en.txt", "--tokenizer", "nowhere", "--out", "x"], "nowhere"),
    ],
)
def test_mistakes_are_sentences(run, folder, arguments, message):
    before = set(folder.iterdir())
    code, shown, _ = run(*arguments)
    assert code == 1
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert set(folder.iterdir()) == before


def test_sweep_trains_a_model_of_each_size_when_asked(run):
    code, shown, found = run("sweep", "rows.tsv", "--vocab-sizes", "257", "280", "--d-model", "16", "--num-layers", "1",
                             "--context-bytes", "32", "--train-flops", "6e8", "--device", "cpu", "--json")  # fmt: skip
    assert code == 0
    assert [one["vocab_size"] for one in found["trained"]] == [257, 280]
    assert all(0 < one["bits_per_byte"] < 8 and one["flops"] <= 6e8 for one in found["trained"])
    assert "One seed each" in shown.out
    code, shown, _ = run("sweep", "rows.tsv", "--vocab-sizes", "257", "--train-flops", "1e6", "--device", "cpu")
    assert code == 1
    assert "give at least" in shown.err
