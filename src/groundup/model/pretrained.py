"""A model directory in Hugging Face's layout: written so that `transformers` loads it, and read strictly.

Reading runs no code that a directory brings (`auto_map` is not looked at) and unpickles nothing; every name
and shape is held against the config before a tensor is read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.config import from_dict, to_dict
from groundup.files import read_json, write_atomic, write_json
from groundup.model.families import from_hugging_face, to_hugging_face, weights_of
from groundup.model.families.experts import without_training
from groundup.model.fitting import check_fit, fill, first_of, skeleton
from groundup.model.transformer import ModelConfig, Transformer
from groundup.model.weight_names import (
    export_tensors,
    exported_name,
    exported_shapes,
    import_tensor,
    known_names,
)
from groundup.tensorfile import TensorEntry, read_tensors, validate_header, write_sharded
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.chat import END_OF_TEXT, END_TOKENS

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
REMEDY = "restore the file, or write the folder again"


def save_pretrained(
    model: Transformer,
    tokenizer_dir: str | Path | None,
    path: str | Path,
    extra_config: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    max_shard_bytes: int | None = None,
    end_ids: Sequence[int] = (),
) -> None:
    """Write config.json, model.safetensors, generation_config.json and the tokenizer's files into `path`.

    Other files there stay. Each file is replaced whole, config.json last: without it a directory is
    unfinished. `extra_config` is added to config.json under the key "groundup", beside our own config.
    `max_shard_bytes` cuts the weights into files of at most that size. `end_ids` are the ids that end a text or a
    turn (default: those of our own tokens for it that the tokenizer has).

    Raises ValueError, with the reason, for an architecture that no Hugging Face class has, and for a
    tokenizer that does not fit the model.
    """
    if not isinstance(model, Transformer):
        raise ValueError(f"save_pretrained: a {type(model).__name__} has no Hugging Face class here; expected a "
                         "Transformer, and for others torch's state_dict in a checkpoint")  # fmt: skip
    path = Path(path)
    family = weights_of(model.config)
    special = _special_tokens(tokenizer_dir, model.config)
    state = {name: tensor.to(dtype) for name, tensor in export_tensors(family, model.state_dict()).items()}
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"{path}: not finite, or beyond what {kind} holds: {first_of(broken)}; bf16 reaches further")
    path.mkdir(parents=True, exist_ok=True)
    write_sharded(path, state, max_shard_bytes)
    _copy_tokenizer(tokenizer_dir, path)
    ends = list(end_ids) or [special[token] for token in END_TOKENS if token in special]
    start = special.get(END_OF_TEXT)
    ids = {"bos_token_id": start, "eos_token_id": (ends if len(ends) > 1 else ends[0]) if ends else None}
    write_json(path / "generation_config.json", {**ids, "pad_token_id": start})
    ours = {"model": to_dict(model.config), **(extra_config or {})}
    config = {**to_hugging_face(model.config), **ids, "torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(path / "config.json", {**config, "groundup": ours})


def load_pretrained(path: str | Path) -> Transformer:
    """The model of a directory: ours, or one of a family in `families`.

    Weights become float32. Raises ValueError for an architecture that is not supported, for names or shapes
    that differ from the config's (they are listed), for weights that are not finite, and for damaged files.
    """
    path = Path(path)
    data = _read_config(path)
    headers = {file: _header(file) for file in _weight_files(path)}
    entries = _joined(headers, path)
    config = _parse_config(data, path, len(entries))
    family = weights_of(config, data, entries)
    names = known_names(entries, family)
    model = skeleton(config, len(entries), f"{path}: config.json")
    tied_head = config.tie_embeddings and "lm_head.weight" in names
    expected = exported_shapes(family, model.state_dict())
    if tied_head:
        expected["lm_head.weight"] = (config.vocab_size, config.d_model)
    found = {full: entries[name] for full, name in names.items()}
    wrong_type = [f"{name} is {entry.dtype}" for name, entry in sorted(found.items()) if not _is_weight(entry)]
    check_fit(expected, {name: entry.shape for name, entry in found.items()}, str(path), "config.json", wrong_type)
    tensors = {full: tensor for file in headers for full, tensor in _read(file, names)}
    if tied_head and not torch.equal(tensors["lm_head.weight"], tensors[exported_name(family, "embed.weight")]):
        raise ValueError(f"{path}: config.json ties the embeddings, yet lm_head.weight is a different matrix")
    state = {name: import_tensor(family, name, tensors).float().clone() for name in model.state_dict()}
    return fill(model, state)


def load_config(path: str | Path) -> ModelConfig:
    """The config of a directory alone: of its weights only the headers are read. ValueError as `load_pretrained`."""
    path = Path(path)
    headers = {file: _header(file) for file in _weight_files(path)}
    return _parse_config(_read_config(path), path, len(_joined(headers, path)))


def read_end_ids(path: str | Path) -> list[int]:
    """The ids that generation_config.json says end a text; config.json where there is none."""
    file = Path(path) / "generation_config.json"
    file = file if file.is_file() else Path(path) / "config.json"
    data = read_json(file) if file.is_file() else {}
    ids = data.get("eos_token_id") if isinstance(data, dict) else None
    ids = [ids] if isinstance(ids, int) else ids or []
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(f"{file}: eos_token_id: {ids!r:.60}; expected an id or a list of ids")
    return ids


def _special_tokens(tokenizer_dir: str | Path | None, config: ModelConfig) -> dict[str, int]:
    if tokenizer_dir is None:
        return {}
    tokenizer = Tokenizer.load(tokenizer_dir)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{tokenizer_dir}: the tokenizer has {tokenizer.vocab_size} tokens and the model only "
            f"{config.vocab_size}: they do not belong together"
        )
    return tokenizer.special_tokens


def _copy_tokenizer(tokenizer_dir: str | Path | None, path: Path) -> None:
    if tokenizer_dir is None or Path(tokenizer_dir).resolve() == path.resolve():
        return
    for name in TOKENIZER_FILES:
        source = Path(tokenizer_dir) / name
        if source.exists():
            write_atomic(path / name, source.read_bytes())


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ValueError(f"{path}: no such directory; expected a folder with config.json and model.safetensors")
    try:
        data = read_json(path / "config.json")
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDY}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path / 'config.json'}: expected a JSON object; {REMEDY}")
    return data


def _header(file: Path) -> dict[str, TensorEntry]:
    try:
        return validate_header(file)
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDY}") from error


def _joined(headers: dict[Path, dict[str, TensorEntry]], path: Path) -> dict[str, TensorEntry]:
    """The tensors of all files. ValueError for one that is in two of them: they may differ."""
    entries: dict[str, TensorEntry] = {}
    for file, header in headers.items():
        twice = sorted(header.keys() & entries.keys())
        if twice:
            raise ValueError(f"{path}: {file.name} has tensors that another file has too: {first_of(twice)}")
        entries |= header
    return entries


def _parse_config(data: dict[str, Any], path: Path, num_tensors: int) -> ModelConfig:
    layers = data.get("num_hidden_layers", data.get("n_layer"))
    # first of all: everything below takes time in proportion to a number that a hostile file can choose
    if isinstance(layers, int) and layers > num_tensors:
        raise ValueError(f"{path}: config.json has {layers} layers, the weights {num_tensors} tensors")
    try:
        config = from_hugging_face(data)
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from error
    return _as_trained(config, data)


def _as_trained(config: ModelConfig, data: dict[str, Any]) -> ModelConfig:
    """With what only training needs, such as coefficients of balancing losses, where our part of the file has it."""
    ours = data.get("groundup")
    try:
        saved = from_dict(ModelConfig, ours["model"]) if isinstance(ours, dict) and "model" in ours else config
    except ValueError:
        return config  # of another version, or another program's: the class's own keys say all that is needed
    layers = range(config.num_layers)
    same_layers = saved.num_layers == config.num_layers and all(
        without_training(saved.block(i)) == without_training(config.block(i)) for i in layers
    )
    return saved if same_layers and replace(saved, blocks=config.blocks) == config else config


def _weight_files(path: Path) -> list[Path]:
    """model.safetensors, or the files that an index of shards names."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    if not index.exists():
        pickled = sorted(p.name for p in path.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle, which can run code and is never read" if pickled else ""
        raise ValueError(f"{path}: no model.safetensors{hint or f'; {REMEDY}'}")
    data = read_json(index)
    shards = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
        raise ValueError(f"{index}: weight_map must map tensor names to file names")
    for name in set(shards.values()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: {name!r:.80} is not the name of a safetensors file in this directory")
    return [path / name for name in sorted(set(shards.values()))]


def _is_weight(entry: TensorEntry) -> bool:
    return entry.dtype.is_floating_point


def _read(file: Path, names: dict[str, str]) -> Iterable[tuple[str, Tensor]]:
    tensors = read_tensors(file)
    here = {full: name for full, name in names.items() if name in tensors}
    broken = [full for full, name in here.items() if not tensors[name].float().isfinite().all()]
    if broken:
        raise ValueError(f"{file}: {len(broken)} tensors hold NaN or infinity: {first_of(broken)}")
    return [(full, tensors[name]) for full, name in here.items()]
