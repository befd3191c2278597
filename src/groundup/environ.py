"""The environment of this process: the only reader of `os.environ` besides what must be set before torch loads."""

import os
import sys
from pathlib import Path


def env(name: str, default: str | None = None) -> str | None:
    """An environment variable. Every other file asks here, so that all of them can be found in one place."""
    return os.environ.get(name, default)


def cache_directory() -> Path:
    """Where this user's files are kept that can be made again: `GROUNDUP_CACHE`, else as the platform has it."""
    if named := env("GROUNDUP_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        return Path(env("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "groundup" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "groundup"
    return Path(env("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundup"
