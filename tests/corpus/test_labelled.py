"""Where the language of a text is found: a column, a field, the name of its file; and what is refused."""

import doctest
import gzip
import json

import pytest

from groundup.corpus import Limits, labelled
from groundup.corpus.labelled import language_of_name, read_labelled


def test_examples_in_docstrings():
    assert doctest.testmod(labelled).failed == 0


def read(path, **options):
    return [(d.text, d.metadata.get("language")) for d in read_labelled(path, **options)]


@pytest.mark.parametrize(
    "rows",
    [
        "de\tEin Satz\nen\tA sentence\n",
        "de\tEin Satz\r\nen\tA sentence",
        "\ufeffde\tEin Satz\nen\tA sentence\n",
        "language\ttext\nde\tEin Satz\nen\tA sentence\n",
        "id\tcontent\tlang\n1\tEin Satz\tde\n2\tA sentence\ten\tmore\n",
        "de\tEin Satz\nfr\t \nen\tA sentence\n",
    ],
)
def test_tables_of_language_and_text(tmp_path, rows):
    path = tmp_path / "rows.tsv"
    path.write_bytes(rows.encode())
    assert read(path) == [("Ein Satz", "de"), ("A sentence", "en")]


def test_a_compressed_table_with_columns_of_other_names(tmp_path):
    path = tmp_path / "rows.tsv.gz"
    path.write_bytes(gzip.compress(b'sentence\tlabel\nA tab is not quoted: "\ten\n'))
    assert read(path, text_field="sentence", language_field="label") == [('A tab is not quoted: "', "en")]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ("a\tb\tc\n", {}, "cannot tell language and text in the columns 'a', 'b', 'c'"),
        ("one column\n", {}, "cannot tell"),
        ("de\tEin Satz\n", {"language_field": "label"}, "cannot tell"),
        ("de\tEin Satz\nalone\n", {}, "rows.tsv:2: 1 columns; expected at least 2"),
        ("de\tEin Satz\n" + "x" * 99 + "\n", {"limits": Limits(record_bytes=50)}, "rows.tsv:2: a line of 99 bytes"),
    ],
)
def test_tables_that_are_none(tmp_path, rows, options, message):
    path = tmp_path / "rows.tsv"
    path.write_text(rows)
    with pytest.raises(ValueError, match=message):
        read(path, **options)


def test_a_binary_table_is_refused(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(bytes(range(128, 256)) * 9)
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read(path)


def test_fields_of_records(tmp_path):
    path = tmp_path / "rows.jsonl"
    records = [{"text": "a", "language": "de"}, {"text": "b", "lang": "en"}, {"text": "c", "lang": None}, {"text": "d"}]
    path.write_text("\n".join(map(json.dumps, records)))
    assert read(path) == [("a", "de"), ("b", "en"), ("c", None), ("d", None)]


def test_a_field_that_no_record_has_is_said(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "tongue": "de"}')
    assert read(path, language_field="tongue") == [("a", "de")]
    with pytest.raises(ValueError, match="no record has a field 'tounge'; did you mean 'tongue'"):
        read(path, language_field="tounge")


def test_names_of_files_are_the_last_resort(tmp_path):
    (tmp_path / "de.txt").write_text("Ein Satz")
    (tmp_path / "fr.jsonl").write_text('{"text": "a", "language": "it"}\n{"text": "b"}')
    (tmp_path / "notes.txt").write_text("What?")
    found = {(d.metadata["file"], d.text, d.metadata.get("language")) for d in read_labelled(tmp_path)}
    names = {(file.rpartition("/")[2], text, language) for file, text, language in found}
    assert names == {
        ("de.txt", "Ein Satz", "de"),
        ("fr.jsonl", "a", "it"),
        ("fr.jsonl", "b", "fr"),
        ("notes.txt", "What?", None),
    }


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("en.txt", "en"),
        ("wiki.en.jsonl.zst", "en"),
        ("zh_TW.txt", "zh_TW"),
        ("deu_Latn.txt", "deu_Latn"),
        ("english.txt", None),
        ("dev.txt", None),
        ("my-en.txt", None),
        ("EN.txt", None),
        ("en", None),
        (".en", None),
    ],
)
def test_only_clear_names_are_taken_for_languages(name, language):
    assert language_of_name(name) == language


def test_real_labels(shared_data):
    documents = list(read_labelled(shared_data / "langid" / "lingua_sentences_dev.tsv.gz"))
    assert len(documents) == 37_071
    assert len({document.metadata["language"] for document in documents}) == 75
