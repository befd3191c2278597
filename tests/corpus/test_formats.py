"""Readers, one by one: what is kept, and what every malformed record is called."""

import json

import pytest

from groundup.corpus import Document, Limits, Problem, Unreadable
from groundup.corpus.formats import read_json, read_jsonl, read_parquet, read_text, reader_of


def read(reader, path, field=None, **limits):
    items = list(reader(path, field, Limits(**limits)))
    return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Problem)]


def test_reader_by_name(tmp_path):
    for name in ("a.txt", "a.md", "a.TXT.gz", "a.md.zst"):
        assert reader_of(tmp_path / name) is read_text
    assert reader_of(tmp_path / "a.b.jsonl.xz") is read_jsonl
    assert reader_of(tmp_path / "a.parquet") is read_parquet
    assert reader_of(tmp_path / "a.parquet.gz") is None
    assert reader_of(tmp_path / "a.gz") is None
    assert reader_of(tmp_path / "README") is None


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n  indented\r\n\r\nlast \n")
    documents, problems = read(read_text, path)
    assert [(d.text, d.source) for d in documents] == [("  indented\r\n\r\nlast ", str(path))]
    assert not problems


def test_a_text_file_with_separators(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("one\n<|endoftext|>\ntwo\n<|endoftext|><|endoftext|>three<|endoftext|>\n")
    documents, _ = read(read_text, path)
    assert [d.text for d in documents] == ["one", "two", "three"]
    assert [d.source for d in documents] == [str(path), f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary.*zero byte at 8"),
        (b"text first " * 10_000 + b"\0", "binary.*zero byte at 110,000"),
        (bytes(range(1, 9)) * 20, "binary.*control characters"),
        ("text".encode("utf-16"), "UTF-16"),
        ("Съешь же ещё этих мягких французских булок".encode("cp1251"), "not UTF-8"),
    ],
)
def test_what_is_not_text_is_refused(tmp_path, content, says):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=says) as error:
        read(read_text, path)
    assert str(path) in str(error.value)


def test_terminal_colours_are_text(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"\x1b[31mred\x1b[0m\n" * 10)
    assert len(read(read_text, path)[0]) == 1


def test_a_document_longer_than_the_limit(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * 100)
    with pytest.raises(Unreadable, match="100 bytes"):
        read(read_text, path, text_bytes=99)


def test_jsonl_by_hand(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one", "year": 1790, "tags": ["a"]}\r\n\n  \n{"text": "two"}')
    documents, problems = read(read_jsonl, path)
    assert documents == [
        Document("one", f"{path}:1", {"year": 1790}),
        Document("two", f"{path}:4", {}),
    ]
    assert not problems


BAD_LINES = {
    "{": "malformed JSON",
    "\0\0": "malformed JSON",
    "[1, 2]": "not a JSON object",
    '"text"': "not a JSON object",
    "{}": "no text field",
    '{"text": null}': "text is not a string",
    '{"text": 1}': "text is not a string",
    '{"text": "a", "x": NaN}': "malformed JSON",
    '{"text": "a", "x": -Infinity}': "malformed JSON",
    '{"text": "a", "text": "b"}': "malformed JSON",
    '{"text": "a", "x": {"y": 1, "y": 2}}': "malformed JSON",
    '{"text": "a", "x": ' + "9" * 5000 + "}": "malformed JSON",
    "[" * 200_000: "JSON nested too deeply",
    '{"a":' * 200_000: "JSON nested too deeply",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:24])
def test_bad_lines_are_named_and_skipped(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + '\n{"text": "also good"}\n')
    documents, problems = read(read_jsonl, path)
    assert [d.text for d in documents] == ["good", "also good"]
    assert [(p.reason, p.source) for p in problems] == [(BAD_LINES[line], f"{path}:2")]


def test_a_line_longer_than_the_limit_is_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + json.dumps({"text": "x" * 5000}) + '\n{"text": "b"}\n')
    documents, problems = read(read_jsonl, path, record_bytes=1000)
    assert [d.text for d in documents] == ["a", "b"]
    assert [p.reason for p in problems] == ["record too long"]


def test_a_long_line_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "ab" * 2**22}))
    (document,), _ = read(read_jsonl, path)
    assert len(document.text) == 2**23


def test_repairs_keep_the_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "caf\xe9 au lait for two"}\n{"text": "half \\ud83d character"}\n')
    documents, problems = read(read_jsonl, path)
    assert [d.text for d in documents] == ["caf\ufffd au lait for two", "half \ufffd character"]
    assert [(p.reason, p.dropped) for p in problems] == [("invalid UTF-8", False), ("lone surrogate", False)]


def test_which_field(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "c", "body": "b"}\n')
    assert read(read_jsonl, path)[0][0].text == "c"
    assert read(read_jsonl, path, "body")[0][0].text == "b"
    with pytest.raises(Unreadable, match="no field 'bodi'; did you mean 'body'"):
        read(read_jsonl, path, "bodi")
    path.write_text('{"title": "t", "story": "s"}\n')
    with pytest.raises(Unreadable, match="no field 'text' or 'content'.*text_field: title, story"):
        read(read_jsonl, path)


def test_json_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "one"}, "two", 3]')
    documents, problems = read(read_json, path)
    assert [d.text for d in documents] == ["one", "two"]
    assert [p.reason for p in problems] == ["not a JSON object"]
    path.write_text('{"content": "single <|endoftext|> document"}')
    assert [d.text for d in read(read_json, path)[0]] == ["single <|endoftext|> document"]
    path.write_text("{")
    with pytest.raises(Unreadable, match="malformed JSON"):
        read(read_json, path)


@pytest.fixture
def parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(name="a.parquet", **columns):
        parquet.write_table(pyarrow.table(columns), tmp_path / name)
        return tmp_path / name

    return write


def test_parquet(parquet):
    texts = [f"document {i}" for i in range(1000)]
    documents, problems = read(read_parquet, parquet(text=[*texts, None], other=[1] * 1001))
    assert [d.text for d in documents] == texts
    assert documents[700].source.endswith("a.parquet:700")
    assert [p.reason for p in problems] == ["text is not a string"]


def test_parquet_kinds_of_columns(parquet):
    pyarrow = pytest.importorskip("pyarrow")
    for kind in (pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        path = parquet(body=pyarrow.array(["a", "b"]).cast(kind))
        assert [d.text for d in read(read_parquet, path, "body")[0]] == ["a", "b"]
    with pytest.raises(Unreadable, match="no field 'text'.*body"):
        read(read_parquet, parquet(body=["a"]))
    with pytest.raises(Unreadable, match="'text' holds int64"):
        read(read_parquet, parquet(text=[1]))


def test_parquet_with_invalid_utf8(parquet):
    pyarrow = pytest.importorskip("pyarrow")
    data = pyarrow.py_buffer(b"caf\xe9 and so on")
    offsets = pyarrow.py_buffer(memoryview(b"\0\0\0\0\x0e\0\0\0"))
    path = parquet(text=pyarrow.StringArray.from_buffers(1, offsets, data))
    documents, problems = read(read_parquet, path)
    assert documents[0].text == "caf\ufffd and so on"
    assert [p.reason for p in problems] == ["invalid UTF-8"]


def test_damaged_parquet(parquet):
    path = parquet(text=[f"document {i}" for i in range(200)])
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], whole.replace(b"PAR1", b"PAR2")):
        path.write_bytes(damaged)
        with pytest.raises(Unreadable, match=r"a\.parquet: broken Parquet"):
            read(read_parquet, path)
    for at in range(0, len(whole), 17):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        try:
            read(read_parquet, path)
        except Unreadable as error:
            assert str(path) in str(error)
