"""An ablation as one file: what `groundup ablate` would be told on the command line, as TOML or JSON."""

import json
import tomllib
from pathlib import Path
from typing import Any

from groundup.cli_parts import Arguments
from groundup.config import near

# What a plan may say -> what its value must be.
KEYS: dict[str, tuple[type, ...]] = {
    "files": (list,),
    "ladder": (bool,),
    "leave_one_out": (bool,),
    "variants": (list,),
    "variant": (dict,),
    "more": (list,),
    "match": (str,),
    "seeds": (int,),
    "budget": (str,),
    "settings": (dict,),
}
_NAMES = {bool: "true or false", list: "a list", dict: "a table", str: "a text", int: "a whole number"}


def apply_plan(options: Arguments, path: str) -> None:
    """Put a plan's values into the options. ValueError for a key that is unknown or was also given beside the plan."""
    plan = _read(Path(path))
    for key, value in plan.items():
        if key not in KEYS:
            raise ValueError(f"{path}: unknown key {key!r}{near(key, KEYS)}; a plan has {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]) or (isinstance(value, bool) and bool not in KEYS[key]):
            raise ValueError(f"{path}: {key} = {value!r}; expected {_NAMES[KEYS[key][0]]}")
    beside = [name for name in KEYS if name != "settings" and getattr(options, name)]
    if beside:
        raise ValueError(
            f"{path} is the whole comparison: leave out {beside[0].replace('_', '-')!r}, or write it there"
        )
    for name in ("ladder", "leave_one_out", "match", "seeds", "budget"):
        if name in plan:
            setattr(options, name, plan[name])
    for name in ("variants", "more"):
        if name in plan:
            setattr(options, name, ",".join(_texts(path, name, plan[name])))
    options.variant = [[name, *_texts(path, f"variant.{name}", keys)] for name, keys in plan.get("variant", {}).items()]
    words = [f"{key}={json.dumps(value)}" for key, value in plan.get("settings", {}).items()]
    # A plan may lie anywhere; the texts that it names lie beside it.
    options.files = [str(Path(path).parent / file) for file in _texts(path, "files", plan.get("files", []))] + words


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        plan = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a plan ({error}); expected a .toml or .json file") from None
    if not isinstance(plan, dict):
        raise ValueError(f"{path}: holds a {type(plan).__name__}; expected keys such as variants and settings")
    return plan


def _texts(path: str, key: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{path}: {key} = {values!r}; expected a list of texts")
    return values
