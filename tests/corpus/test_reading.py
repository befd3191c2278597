"""Files and folders: what is found, what named and found files are owed, and the law of conservation."""

import gzip
import json
import logging
import os

import pytest

from groundup import bundled
from groundup.corpus import Tally, discover, read_documents
from groundup.files import sha256


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\nbroken\n{"text": " "}\n')
    (tmp_path / "sub" / "c.md.gz").write_bytes(gzip.compress(b"third"))
    (tmp_path / "sub" / ".hidden" / "x.txt").write_text("hidden")
    (tmp_path / ".y.txt").write_text("hidden")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "binary.txt").write_bytes(b"\0" * 100)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"text" * 99)[:-4])
    return tmp_path


def test_a_folder(folder):
    problems, tally = [], Tally()
    documents = list(read_documents(folder, on_problem=problems.append, tally=tally))
    assert [d.text for d in documents] == ["first", "second", "third"]
    assert tally.skipped == {
        "malformed JSON": 1,
        "empty document": 1,
        "unreadable file": 2,
        "empty file": 1,
        "unknown kind of file": 1,
    }
    assert (tally.seen, tally.kept) == (9, 3)
    assert len(problems) == 6


def test_discover(folder):
    names = [p.relative_to(folder).as_posix() for p in discover(folder)]
    assert names == ["a.jsonl", "b.txt", "binary.txt", "cut.txt.gz", "empty.txt", "sub/c.md.gz"]
    assert discover([folder / "b.txt", folder, folder / "b.txt"])[0] == folder / "b.txt"
    assert len(discover([folder / "b.txt", folder, folder / "b.txt"])) == 6


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("binary.txt", "binary"),
        ("empty.txt", "empty file"),
        ("cut.txt.gz", "ends in the middle"),
        ("image.png", "cannot tell its format"),
    ],
)
def test_a_named_file_must_be_readable(folder, name, says):
    with pytest.raises(ValueError, match=says) as error:
        list(read_documents([folder / "b.txt", folder / name]))
    assert name in str(error.value)


def test_a_file_of_which_every_line_is_bad(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("not json\n" * 10)
    with pytest.raises(ValueError, match=r"a\.jsonl: no document.*a\.jsonl:1: malformed JSON"):
        list(read_documents(path))


def test_a_folder_without_any_document(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "b.txt").write_bytes(b"\0")
    with pytest.raises(ValueError, match="no document in 2 files.*1 x empty document, 1 x unreadable file"):
        list(read_documents(tmp_path))
    with pytest.raises(ValueError, match="no file in this folder ends in .txt"):
        (tmp_path / "sub").mkdir()
        read_documents(tmp_path / "sub")


def test_a_link_to_itself_is_said(tmp_path):
    (tmp_path / "a.txt").symlink_to("a.txt")
    with pytest.raises(FileNotFoundError, match="a link that leads nowhere"):
        read_documents(tmp_path / "a.txt")


def test_missing_paths_are_errors_at_once(folder):
    with pytest.raises(FileNotFoundError, match=r"a\.json: no such file or folder; did you mean 'a\.jsonl'"):
        read_documents(folder / "a.json")
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_documents(folder / "nowhere" / "a.json")
    with pytest.raises(ValueError, match="no files given"):
        read_documents([])


def test_a_missing_name_is_answered_with_near_names_only(tmp_path, monkeypatch):
    for name in ("notes.txt", "notes.md", "zebra.txt", "quite_other.jsonl"):
        (tmp_path / name).write_text("x")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'notes\.txt' or 'notes\.md'\?$"):
        read_documents(tmp_path / "Notes.tx")
    with pytest.raises(FileNotFoundError, match="no such file or folder; .* holds no name like it$") as error:
        read_documents(tmp_path / "kkkkkkkk")
    assert "zebra" not in str(error.value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="^kkkkkkkk: no such file or folder; this folder holds no name like it$"
    ):
        read_documents("kkkkkkkk")


def test_a_pattern_that_the_shell_left_is_told_from_a_name(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for pattern in ("*.md", "b?.txt", "no*/a.txt"):
        with pytest.raises(FileNotFoundError, match="this pattern matched nothing$"):
            read_documents(tmp_path / pattern)
    with pytest.raises(FileNotFoundError, match="1 name would match, but the shell fills in patterns"):
        read_documents(tmp_path / "*.txt")
    (tmp_path / "really*.txt").write_text("a name with a star")
    assert len(list(read_documents(tmp_path / "really*.txt"))) == 1


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match="not a regular file"):
        read_documents(tmp_path / "pipe.txt")
    (tmp_path / "a.txt").write_text("text")
    assert len(list(read_documents(tmp_path))) == 1


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert [d.text for d in read_documents(tmp_path)] == ["text"]


def test_an_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("text")
    really_open = open

    def refuse(path, *arguments, **options):
        if str(path).endswith("b.txt"):
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=r"b\.txt"):
        list(read_documents(tmp_path / "b.txt"))
    tally = Tally()
    assert len(list(read_documents(tmp_path, tally=tally))) == 1
    assert tally.skipped == {"unreadable file": 1}


def test_an_error_of_the_caller_is_not_taken_for_one_of_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\nbad\n')

    def fail(problem):
        raise OSError("the caller's disk is full")

    with pytest.raises(OSError, match="disk is full"):
        list(read_documents(tmp_path, on_problem=fail))


def test_each_kind_of_problem_is_logged_once_per_file_and_printable(tmp_path, caplog):
    (tmp_path / "a\x1b[31m.jsonl").write_text('{"text": "x"}\n' + "bad\n" * 50 + '{"text": 1}\n' * 50)
    tally = Tally()
    with caplog.at_level(logging.WARNING):
        list(read_documents(tmp_path, tally=tally))
    assert tally.skipped == {"malformed JSON": 50, "text is not a string": 50}
    assert [r.getMessage().partition(": ")[2].partition(" (")[0] for r in caplog.records] == [
        "malformed JSON",
        "text is not a string",
    ]
    assert "\x1b" not in caplog.text


def test_reading_is_lazy(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(10)))
    tally = Tally()
    documents = read_documents(tmp_path, tally=tally)
    next(documents)
    assert tally.seen == 1


def test_the_bundled_corpus():
    tally = Tally()
    documents = list(read_documents(bundled.path(), tally=tally))
    assert str(tally) == "233 of 233 kept"
    years = [d.metadata["year"] for d in documents]
    assert years == sorted(years) and (years[0], years[-1]) == (1790, 2021)
    assert documents[0].text.startswith("Fellow-Citizens of the Senate")
    assert sum(len(d.text) for d in documents) > 10_000_000
    assert not any(c < " " and c != "\n" for d in documents for c in set(d.text))


def test_the_bundled_file_is_the_one_on_record():
    licence = bundled.path().with_name("LICENSE").read_text()
    assert sha256(bundled.path()) == bundled.FILE_SHA256
    assert bundled.FILE_SHA256 in licence and bundled.TEXT_SHA256 in licence
    assert bundled.path().stat().st_size < 10_000_000
