"""What has its final name is whole: under errors in the middle, too."""

import os

import pytest

from groundup import cli, files


def test_write_atomic_replaces_and_leaves_no_temporary(tmp_path):
    target = tmp_path / "folder" / "a.txt"
    files.write_atomic(target, "one")
    files.write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    files.write_atomic(target, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_directory_appears_whole_or_not_at_all(tmp_path):
    final = tmp_path / "set"
    with pytest.raises(RuntimeError), files.atomic_directory(final) as folder:
        (folder / "part").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.atomic_directory(final) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "part").write_text("whole")
    assert (final / "inner" / "part").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_atomic_directory_replaces_an_existing_one(tmp_path):
    final = tmp_path / "set"
    for content in ("first", "second"):
        with files.atomic_directory(final) as folder:
            (folder / content).write_text(content)
    assert [p.name for p in final.iterdir()] == ["second"]


def test_sha256_of_a_known_string(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_names_the_file(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        files.read_json(tmp_path / "x.json")


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert files.read_json(tmp_path / "x.json") == {"a": 1}


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="nowhere") as caught, files.naming(tmp_path / "x.bin"):
        raise OSError(28, "nowhere to write")
    assert caught.value.filename == str(tmp_path / "x.bin")
    assert "x.bin: nowhere to write; free some space" in cli.describe(caught.value)


def test_a_full_disk_is_told_from_a_missing_file():
    assert files.is_full(OSError("a.safetensors: Error while serializing: No space left on device (os error 28)"))
    assert not files.is_full(FileNotFoundError(2, "No such file or directory"))


def test_fresh_path_counts_up(tmp_path):
    for expected in ("x", "x-2", "x-3"):
        path = files.fresh_path("x", tmp_path)
        assert path.name == expected
        path.mkdir()
