"""`groundup tokenizer audit`: what is wrong with a vocabulary, as tables, as JSON, and as an exit code."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from groundup.cli_parts import Arguments, Parser, describe, number, print_json, print_table, whole_number
from groundup.cli_tokenizer_text import add_text, read_samples
from groundup.config import plural

if TYPE_CHECKING:
    from groundup.tokenizer import Tokenizer
    from groundup.tokenizer.audit import Audit
    from groundup.tokenizer.compare import Row, Sample


def audit_options(parser: Parser) -> None:
    add = parser.add_argument
    add("tokenizer", metavar="TOKENIZER", help="folder or tokenizer.json")
    add_text(parser, "look at the vocabulary only")
    add("--max-unreachable", type=whole_number, default=0, metavar="N",
        help="tokens that no text gives, let pass (default: %(default)s)")  # fmt: skip
    add("--max-overlaps", type=whole_number, default=0, metavar="N",
        help="overlapping pairs of special tokens, let pass (default: %(default)s)")  # fmt: skip
    add("--max-unseen", type=number, metavar="X",
        help="share of the vocabulary, 0 to 1, that may be missing from FILES (default: any)")  # fmt: skip
    add("--max-tax", type=number, metavar="X",
        help="most tokens per character of a language, against the reference (default: any)")  # fmt: skip
    add("--regular-digits", action="store_true", help="numbers of one length must all be cut alike")
    add("--rare", type=whole_number, default=0, metavar="N",
        help="a token that FILES have no more often counts as missing (default: %(default)s)")  # fmt: skip
    add("--reference", metavar="LANGUAGE",
        help="whose tokens are the measure (default: en, or else the language that takes least)")  # fmt: skip
    add("--show", type=whole_number, default=10, metavar="N", help="examples of each kind (default: %(default)s)")
    add("--json", action="store_true", help="end with one JSON line")
    parser.more = lambda: "exit code: 0 nothing beyond what is let pass, 1 something, 2 wrong use or unreadable files"


def audit(options: Arguments) -> int:
    """0: nothing found; 1: findings beyond the limits; 2: it could not be looked at."""
    try:
        return _audit(options)
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"groundup tokenizer audit: error: {describe(error)}", file=sys.stderr)
        return 2


def _audit(options: Arguments) -> int:
    from groundup.tokenizer import Tokenizer
    from groundup.tokenizer import audit as room

    limits = room.Limits(options.max_unreachable, options.max_unseen, options.max_tax, options.max_overlaps,
                         not options.regular_digits)  # fmt: skip
    if not options.files and (limits.unseen is not None or limits.tax is not None):
        raise ValueError("--max-unseen and --max-tax are about text: name FILES")
    tokenizer = Tokenizer.load(options.tokenizer)
    samples = read_samples(options) if options.files else None
    rows = _rows_by_language(tokenizer, samples)
    if limits.tax is not None and rows is None:
        raise ValueError("--max-tax needs texts in two or more languages that are known; see --language-field")
    texts = None if samples is None else [sample.text for sample in samples]
    found = room.audit(tokenizer, texts, rows, rare=options.rare, reference=options.reference)
    said = room.findings(found, limits)
    _print_audit(tokenizer, found, options)
    print("\n".join(f"FOUND {sentence}" for sentence in said) or "nothing beyond what is let pass")
    if options.json:
        print_json(_audit_json(found, said, options))
    return 1 if said else 0


def _rows_by_language(tokenizer: "Tokenizer", samples: Sequence["Sample"] | None) -> list["Row"] | None:
    """Its rows of `compare`; None where fewer than two languages are known."""
    from groundup.tokenizer.compare import compare
    from groundup.tokenizer.protocol import BytePair

    known = [sample for sample in samples or () if sample.language]
    if len({sample.language for sample in known}) < 2:
        return None
    return compare([BytePair(tokenizer)], known).rows


def _print_audit(tokenizer: "Tokenizer", found: "Audit", options: Arguments) -> None:
    title, headings = f"{options.tokenizer}: {found.vocab_size:,} tokens", ("what", "count", "examples")
    print_table(title, headings, _audit_lines(tokenizer, found, options), words=(0, 2))
    print(f"numbers, by the pattern alone: {found.digits.pattern}\nnumbers, as tokens: {found.digits.verdict}")
    lines = [
        [str(digits), *(f"{'+'.join(map(str, cut))} {share:.0%}" for cut, share in cuts[:3]), *[""] * (3 - len(cuts))]
        for digits, cuts in found.digits.cuts.items()
    ]
    print_table("Digits in each token", ("digits", "most often", "then", "then"), lines)
    for text in ("hello", " hello"):
        ids = tokenizer.encode(text)
        print(f"{text!r} is {plural(len(ids), 'token')}: {' '.join(map(str, ids))}")
    if found.taxes:
        lines = [
            [tax.language, f"{tax.bytes_per_token:.2f}", f"{tax.tokens_per_character:.3f}", f"{tax.per_byte:.2f}",
             f"{tax.per_character:.2f}"] for tax in found.taxes
        ]  # fmt: skip
        headings = ("language", "bytes per token", "tokens per character", "per byte, of it", "per character, of it")
        print_table(f"What languages pay in tokens, in multiples of {found.reference!r}", headings, lines)


def _audit_lines(tokenizer: "Tokenizer", found: "Audit", options: Arguments) -> list[list[str]]:
    from groundup.tokenizer.audit import REASONS

    def examples(tokens: Sequence[bytes]) -> str:
        return " ".join(repr(token.decode("utf-8", "backslashreplace")) for token in tokens[: options.show])

    lines = [["tokens that do not encode to themselves", f"{len(found.unreachable):,}", ""]]
    for reason, words in REASONS.items():
        tokens = [lost.token for lost in found.unreachable if lost.reason == reason]
        if tokens:
            lines.append([f"- {words}", f"{len(tokens):,}", examples(tokens)])
    if found.unseen is not None:
        tokens = [tokenizer.vocab[token] for token, _ in found.unseen]
        what = f"at most {plural(options.rare, 'time')} in the texts" if options.rare else "not in the texts"
        longer = [token for token in tokens if len(token) > 1]  # single bytes would only be control characters
        lines.append([what, f"{len(tokens):,}", examples(longer)])
    words = [tokenizer.vocab[word] for word, _ in found.leading_space_pairs]
    lines.append(["words that are there with and without a leading space", f"{len(words):,}", examples(words)])
    pairs = [f"{left} {right}".encode() for left, right in found.overlapping_specials]
    return [*lines, ["special tokens that overlap", f"{len(pairs):,}", examples(pairs)]]


def _audit_json(found: "Audit", said: list[str], options: Arguments) -> dict[str, Any]:
    return {
        "tokenizer": options.tokenizer,
        "vocab_size": found.vocab_size,
        "findings": said,
        "unreachable": [
            {"id": lost.id, "token": lost.token.decode("latin-1"), "reason": lost.reason, "certain": lost.certain}
            for lost in found.unreachable
        ],
        "unseen": found.unseen,
        "unseen_share": None if found.unseen is None else found.unseen_share,
        "digits": asdict(found.digits),
        "leading_space_pairs": found.leading_space_pairs,
        "overlapping_specials": found.overlapping_specials,
        "reference": found.reference,
        "taxes": None if found.taxes is None else [asdict(tax) for tax in found.taxes],
    }
