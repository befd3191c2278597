"""Tokenization: text to ids and back, by byte-level byte-pair encoding."""

from groundup.tokenizer.chat import CHAT_TEMPLATE, render
from groundup.tokenizer.pretokenize import PATTERNS
from groundup.tokenizer.stream import StreamDecoder
from groundup.tokenizer.tokenizer import Tokenizer

__all__ = ["CHAT_TEMPLATE", "PATTERNS", "StreamDecoder", "Tokenizer", "render"]
