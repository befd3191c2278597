"""The page of a history, from an invented result.json."""

import json

import pytest

from groundup.report.entropy import entropy_table
from groundup.report.history import beside_table, history_text, lede, rung_svg, write_history_report

from .test_ablation import comparison
from .test_html import Checker


def rung(name, bits, counted=False, **more):
    whole = [x for x in bits if x is not None]
    mean = sum(whole) / len(whole) if whole else None
    low, high = (None, None) if counted or mean is None else (mean - 0.1, mean + 0.1)
    return {
        "name": name, "year": 1998, "source": "A & B 1998", "what": "<b>bold</b>", "counted": counted,
        "parameters": 12_345, "flops": None if counted else 7.1e9, "tokens": 640, "seconds": 1.5,
        "tokens_per_second": 426.7, "rate": None if counted else 0.003, "bits_per_byte": bits, "mean": mean,
        "deviation": None if counted else 0.01, "low": low, "high": high, "diverged": bits.count(None), **more,
    }  # fmt: skip


LAB = {
    "letters": 90_000, "held_out_letters": 1_200, "guesses": 300, "zstd": 2.61,
    "rows": [{"n": n, "plug_in": 4 - n / 2, "plug_in_held_out": 4 - n, "scored": 4.0, "lower": 1.25, "upper": 2.25}
             for n in (1, 2)],
    "gpt": {"fault": None, "context": 128, "scored": 1.75, "lower": 0.875, "upper": 1.875},
    "shannon": {"F0": 4.76, "F1": 4.03, "F2": 3.32, "F3": 3.1, "Fword": 2.14}, "shannon_guessing": [0.6, 1.3],
}  # fmt: skip


BESIDE = [
    {"name": name, "scored_on": "these tokens", "rate": 0.003, "parameters": 12_000, "steps": 40, "seconds": 2.0,
     "bits_per_byte": bits, "scored_tokens": 90, "fault": None}
    for name, bits in (("encdec", [1.5, 1.75]), ("mlm", [0.5, None]))
]  # fmt: skip


def made(**more):
    return {
        "settings": {"seeds": 2}, "rungs": [rung("ngram", [2.0], counted=True), rung("lstm", [1.8, 1.9]),
                                            rung("gpt", [1.6, 1.7])],
        "orders": [{"order": 1, "bits_per_byte": 3.0, "ngrams": 10, "seconds": 0.1}],
        "compressors": [{"name": "zstd_19", "bits_per_byte": 2.5, "policy": "one stream"}],
        "comparisons": [comparison("lstm", "better", -0.2, -0.1) | {"against": "ngram"},
                        comparison("gpt", "no difference shown", -0.2, 0.1) | {"against": "lstm"}],
        "ordering": {"expected": ["ngram", "lstm", "gpt"], "seen": ["ngram", "lstm", "gpt"], "reproduced": True},
        "notes": ["a note with <script>"], "entropy": LAB, "beside": BESIDE, **more,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(made()))
    return tmp_path


def test_the_page_is_whole_and_escapes_what_it_is_given(folder):
    text = write_history_report(folder).read_text()
    page = Checker()
    page.feed(text)
    assert not page.open
    tags = {tag for tag, _ in page.seen}
    assert "script" not in tags and "b" not in tags
    assert "link" not in tags and not any("src" in attributes for _, attributes in page.seen)
    assert "a note with <script>" in " ".join(page.words)
    assert sum(tag == "svg" for tag, _ in page.seen) == 3  # the rungs, the differences, the entropy
    assert write_history_report(folder).read_text() == text


def test_the_first_sentence_says_the_order_and_what_the_seeds_show():
    assert lede(made()) == (
        "Bits per byte, worst to best: ngram 2.000, lstm 1.850, gpt 1.650. The order of the textbook, ngram > lstm > "
        "gpt, came out; lstm against ngram: better; gpt against lstm: no difference shown."
    )
    lost = made(rungs=[rung("ngram", [2.0], counted=True), rung("gpt", [None, None])],
                ordering={"expected": ["ngram", "lstm", "gpt"], "seen": ["ngram"], "reproduced": False})  # fmt: skip
    assert "Diverged: gpt. The order of the textbook, ngram > lstm > gpt, did not come out" in lede(lost)


def test_the_text_has_every_table(folder):
    text = history_text(folder)
    assert "zstd_19" in text and "12,345" in text and "1.8500" in text and "order" in text


def test_the_entropy_of_english_is_a_part_that_may_be_missing(folder):
    text = history_text(folder)
    assert "4.76" in text and "gpt, 128 letters" in text and "0.875" in text and "0.6 to 1.3" in text
    broken = LAB | {"gpt": LAB["gpt"] | {"fault": "not finite"}}
    assert len(entropy_table(broken).rows) == len(entropy_table(LAB).rows) - 1
    (folder / "result.json").write_text(json.dumps(made(entropy=None)))
    assert "person" not in history_text(folder)
    assert "entropy of English" not in write_history_report(folder).read_text()


def test_a_masked_model_has_a_column_of_its_own(folder):
    encdec, mlm = beside_table(made()).rows
    assert encdec[1:3] == ["1.6250", "–"] and mlm[1:3] == ["–", "0.5000"] and mlm[3] == "0.5000, –"
    assert "mlm" in history_text(folder) and "mlm" not in lede(made())
    (folder / "result.json").write_text(json.dumps(made(beside=[])))
    assert "pseudo" not in history_text(folder) + write_history_report(folder).read_text()


def test_a_diverged_rung_is_left_out_of_the_chart():
    drawn = rung_svg([rung("lstm", [None, None]), rung("gpt", [1.6, None])], [])
    assert drawn and "1.600" in drawn
    assert rung_svg([rung("lstm", [None, None])], []) is None


def test_a_folder_without_a_whole_result_is_refused(tmp_path):
    with pytest.raises(ValueError, match="finish the history with"):
        write_history_report(tmp_path)
    (tmp_path / "result.json").write_text('{"rungs": []}')
    with pytest.raises(ValueError, match="it has no beside, comparisons"):
        write_history_report(tmp_path)


@pytest.mark.parametrize("more", [{"rungs": [{}]}, {"rungs": 5}, {"entropy": {"gpt": None}}, {"beside": {"a": 1}}])
def test_a_result_with_damaged_rows_is_named(folder, more):
    (folder / "result.json").write_text(json.dumps(made(**more)))
    for show in (write_history_report, history_text):
        with pytest.raises(ValueError, match=r"result\.json: damaged .*groundup history --resume"):
            show(folder)
    assert not (folder / "report.html").exists()
