"""Where the user's files are kept that can be made again."""

from pathlib import Path

import pytest

from groundup.environ import cache_directory, env, set_default


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
