"""Where the user's files are kept that can be made again."""

from pathlib import Path

import pytest

from groundup.environ import cache_directory, env, for_program, set_default


def test_the_cache_goes_where_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path


@pytest.mark.parametrize("platform, end", [("linux", ".cache/groundup"), ("darwin", "Library/Caches/groundup")])
def test_else_where_the_platform_keeps_such_files(monkeypatch, platform, end):
    for name in ("GROUNDUP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("groundup.environ.sys.platform", platform)
    assert cache_directory() == Path.home() / end


def test_without_a_home_it_is_a_place_where_nothing_can_be_written(monkeypatch):
    for name in ("GROUNDUP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError):
        cache_directory().mkdir(parents=True)


def test_a_default_does_not_replace_what_is_set(monkeypatch):
    monkeypatch.setenv("GROUNDUP_TRIAL", "set")
    set_default("GROUNDUP_TRIAL", "default")
    assert env("GROUNDUP_TRIAL") == "set"


def test_a_measured_program_gets_no_settings_of_threads_but_their_number(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("GROUNDUP_TRIAL", "kept")
    found = for_program(2)
    assert {name for name in found if name.startswith(("OMP", "KMP", "GOMP", "MKL"))} == {"OMP_NUM_THREADS"}
    assert (found["OMP_NUM_THREADS"], found["GROUNDUP_TRIAL"]) == ("2", "kept")
    assert for_program()["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "OMP_NUM_THREADS" not in for_program()
