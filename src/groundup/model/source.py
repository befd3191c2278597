"""A model from whatever holds it (a Hugging Face folder, GGUF, llama2.c), with its tokenizer and chat format.

And the other way: a folder or a GGUF file that holds the same, and how far its logits are from the model's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from groundup.files import atomic_directory, read_json, write_json
from groundup.gguf import GGUFFile
from groundup.gguf.metadata import MAGIC
from groundup.model.gguf import load_gguf, save_gguf
from groundup.model.llama2c import load_llama2c
from groundup.model.pretrained import load_pretrained, read_end_ids, save_pretrained
from groundup.model.transformer import Transformer
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.chat import END_OF_TEXT, END_TOKENS
from groundup.tokenizer.gguf import TEMPLATE_KEY, to_metadata
from groundup.tokenizer.template import ChatTemplate, load_template

PROBE = "The quick brown fox jumps over the lazy dog: 12 + 34 = 46. Übung macht den Meister, 你好!\n\n  x = f(y)\n"
PROBE_TOKENS = 48
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")  # as ChatML, Llama 3 and Gemma spell the end of a turn
TEMPLATE_TOKENS = ("bos_token", "eos_token")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """A model, and what comes with it.

    `end_ids` end a text or a turn; `template` is a chat template (Jinja), `tokens` the texts that it may name,
    bos_token and eos_token.
    """

    model: Transformer
    tokenizer: Tokenizer | None = None
    template: str | None = None
    end_ids: tuple[int, ...] = ()
    tokens: Mapping[str, str] = field(default_factory=dict)

    def probe(self) -> Int[Tensor, "1 seq"]:
        """The fixed text as ids, or ids spread over the vocabulary where there is no tokenizer."""
        config = self.model.config
        length = min(PROBE_TOKENS, config.context_length)
        spread = [i * 7919 % config.vocab_size for i in range(length)]
        ids = spread if self.tokenizer is None else self.tokenizer.encode(PROBE)[:length]
        return torch.tensor([ids])


class Difference(NamedTuple):
    """How far what was read back is from its source: the largest difference of two logits, and of how large ones."""

    logits: float
    largest_logit: float
    greedy_agrees: bool
    tokens: int


def read_source(path: str | Path, *, with_tokenizer: bool = True) -> Source:
    """Read a model. Its kind is recognised: a folder, GGUF by its first bytes, else llama2.c's .bin.

    ValueError for damage and for what is not supported, also in its tokenizer, unless that is left out.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, with_tokenizer)
    with open(path, "rb") as file:
        start = file.read(len(MAGIC))
    if start == MAGIC:
        return _read_gguf(path, with_tokenizer)
    if path.suffix not in (".bin", ".data"):
        raise ValueError(f"{path}: expected a model folder, a GGUF file, or llama2.c's .bin (or .data)")
    return Source(load_llama2c(path).eval())


def _read_folder(path: Path, with_tokenizer: bool) -> Source:
    model = load_pretrained(path).eval()
    if not with_tokenizer or not (path / "tokenizer.json").is_file():
        return Source(model)
    template, tokenizer = load_template(path), _load_tokenizer(path)
    ends = read_end_ids(path) or [tokenizer.special_tokens[t] for t in END_TOKENS if t in tokenizer.special_tokens]
    if template is None:
        return Source(model, tokenizer, None, tuple(ends))
    return Source(model, tokenizer, template.source, tuple(ends), template.tokens)


def _read_gguf(path: Path, with_tokenizer: bool) -> Source:
    model = load_gguf(path).eval()
    with GGUFFile(path) as file:
        metadata = file.metadata
    if not with_tokenizer or metadata.get("tokenizer.ggml.model", "none") in ("none", "no_vocab"):
        return Source(model)
    tokenizer = _load_tokenizer(path)
    template = metadata.get(TEMPLATE_KEY)
    if template is not None:
        ChatTemplate(str(template))  # a broken one is an error here, and not once somebody chats
    named = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    texts = (tokenizer.special_tokens.get(token) for token in (*END_TOKENS, *TURN_ENDS))
    ends = dict.fromkeys(i for i in (*named, *texts) if type(i) is int and i < model.config.vocab_size)
    if not isinstance(template, str):
        return Source(model, tokenizer, None, tuple(ends))
    ids = {name: metadata.get(f"tokenizer.ggml.{name[:3]}_token_id") for name in TEMPLATE_TOKENS if name in template}
    spelled = tokenizer.special_tokens.items()
    tokens = {name: text for name, meant in ids.items() for text, special in spelled if special == meant}
    return Source(model, tokenizer, template, tuple(ends), tokens)


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.load(path)
    except ValueError as error:
        raise ValueError(f"{error}; the model can be read without it (--without-tokenizer)") from error


def write_folder(source: Source, path: str | Path, dtype: str = "f32", max_shard_bytes: int | None = None) -> None:
    """Write a folder in Hugging Face's layout that did not exist before; it appears when it is whole."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: a folder holds one of {', '.join(DTYPES)}; write GGUF for others")
    with atomic_directory(refuse_existing(path)) as folder:
        if source.tokenizer is not None:
            source.tokenizer.save(folder)
            _write_chat(source, folder / "tokenizer_config.json")
        tokenizer_dir = folder if source.tokenizer else None
        save_pretrained(source.model, tokenizer_dir, folder, dtype=DTYPES[dtype], max_shard_bytes=max_shard_bytes,
                        end_ids=source.end_ids)  # fmt: skip


def _write_chat(source: Source, path: Path) -> None:
    config = read_json(path)
    if source.template is not None:
        config["chat_template"] = source.template
    names = {i: token for token, i in (source.tokenizer.special_tokens if source.tokenizer else {}).items()}
    if source.end_ids and source.end_ids[0] in names:
        config["eos_token"] = names[source.end_ids[0]]
    config |= {name: text for name, text in source.tokens.items() if text}  # a template means these, and no others
    write_json(path, config)


def write_gguf_model(source: Source, path: str | Path, dtype: str = "f16", name: str = "groundup") -> None:
    """Write a GGUF file that did not exist before, with the tokenizer and the chat template in it."""
    refuse_existing(path)
    metadata = None
    if source.tokenizer is not None:
        end, end_of_turn = _ends(source)
        start = source.tokenizer.special_tokens.get(source.tokens.get("bos_token") or END_OF_TEXT)
        metadata = to_metadata(source.tokenizer.parts(), source.model.config.vocab_size, start=start, end=end,
                               end_of_turn=end_of_turn, template=source.template)  # fmt: skip
    save_gguf(source.model, path, metadata, dtype, name)


def _ends(source: Source) -> tuple[int | None, int | None]:
    """The two that GGUF has keys for: what ends a text, and what ends a turn, by its name where it has a known one."""
    special = source.tokenizer.special_tokens if source.tokenizer else {}
    meant = special.get(source.tokens.get("eos_token", ""))  # what a template means by eos_token
    end = meant if meant in source.end_ids else (source.end_ids or (None,))[0]
    known = [special[text] for text in TURN_ENDS if special.get(text) in source.end_ids]
    return end, next((i for i in (*known, *source.end_ids) if i != end), None)


def refuse_existing(path: str | Path) -> Path:
    """The path, which nothing has yet. ValueError otherwise."""
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path}: is there already, and is not overwritten; name another, or remove it")
    return path


@torch.no_grad()
def compare(source: Source, written: Source) -> Difference:
    """How far the logits of `written` are from those of `source` on the probe.

    ValueError when the two tokenizers give the probe other ids: then no logits can be compared.
    """
    ids = source.probe()
    if written.tokenizer is not None and not torch.equal(ids, written.probe()):
        raise ValueError("the tokenizer that was written gives other ids than the source's")
    ours, theirs = source.model(ids), written.model(ids)
    agrees = torch.equal(ours.argmax(-1), theirs.argmax(-1))
    return Difference(float((ours - theirs).abs().max()), float(ours.abs().max()), agrees, ids.shape[1])
