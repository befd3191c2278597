"""The actions of `groundup tokenizer` that measure: compare, sweep, audit, and what sequence length costs."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.cli_parts import (
    Arguments,
    Parser,
    add_device,
    describe,
    number,
    print_json,
    print_table,
    progress_line,
    whole_number,
)
from groundup.config import plural

if TYPE_CHECKING:
    from groundup.tokenizer import Tokenizer
    from groundup.tokenizer.audit import Audit
    from groundup.tokenizer.compare import Row, Sample
    from groundup.tokenizer.protocol import TextTokenizer
    from groundup.tokenizer.sweep import CostOfToken

SWEPT_SIZES = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
EXPLAINED_BYTES = (1024, 4096, 16_384, 65_536)
# Enough to tell models apart; scoring more would take longer than training does.
SCORED_BYTES = 500_000


def load_named(paths: Sequence[str]) -> dict[str, "Tokenizer"]:
    """The tokenizers by the shortest names that tell them apart: of the file or folder, or else the path."""
    from groundup.tokenizer import Tokenizer

    short = [path.parent.name if path.name == "tokenizer.json" else path.stem for path in map(Path, paths)]
    names = [name if name and short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]
    return {name: Tokenizer.load(path) for name, path in zip(names, paths, strict=True)}


# the text ---------------------------------------------------------------------------------------------------------


def _add_text(parser: Parser, nargs: str = "*") -> None:
    add = parser.add_argument
    bundled = "" if nargs == "+" else "; default: the bundled corpus"
    add("files", nargs=nargs, metavar="FILES",
        help=f".txt .md .jsonl .parquet, folders, or .tsv with the columns language and text{bundled}")  # fmt: skip
    add("--text-field", metavar="NAME", help="field or column that holds the text (default: text, else content)")
    add("--language-field", metavar="NAME",
        help="field or column that holds the language (default: language, else lang, else the file's name if it is "
             "a language's, such as de.txt)")  # fmt: skip
    add("--limit-mb", type=number, default=64.0, metavar="X",
        help="read no more than so many million bytes of text (default: %(default)s)")  # fmt: skip


def _read(options: Arguments) -> list["Sample"]:
    """The named text with file and language of each document, up to the limit."""
    from groundup import bundled
    from groundup.corpus.labelled import read_labelled
    from groundup.tokenizer.compare import Sample, in_blocks

    samples, size = [], 0
    paths = options.files or [bundled.path()]
    for document in read_labelled(paths, text_field=options.text_field, language_field=options.language_field):
        samples.append(Sample(document.text, document.metadata["file"], document.metadata.get("language")))
        size += len(document.text.encode("utf-8", "replace"))
        if size >= options.limit_mb * 1e6:
            print(f"read the first {options.limit_mb:g} MB only; --limit-mb sets how much", file=sys.stderr)
            break
    return in_blocks(samples)


def _size(samples: Sequence["Sample"]) -> int:
    return sum(len(sample.text.encode("utf-8", "replace")) for sample in samples)


# compare ----------------------------------------------------------------------------------------------------------


def _add_learning(parser: Parser) -> None:
    add = parser.add_argument
    add("--pattern", default="gpt2",
        help="how words are cut: gpt2, gpt4, o200k, none or a regular expression (default: %(default)s)")  # fmt: skip
    add("--train-fraction", type=number, default=0.8, metavar="X",
        help="share of each file and language, its beginning, to learn from; the rest is measured "
             "(default: %(default)s)")  # fmt: skip


def compare_options(parser: Parser) -> None:
    add = parser.add_argument
    _add_text(parser)
    add("--tokenizer", action="append", default=[], metavar="T",
        help="a folder or tokenizer.json to compare as well; may be repeated (default: none)")  # fmt: skip
    add("--vocab-size", type=whole_number, default=8192, metavar="N",
        help="tokens of the BPE that is learned here (default: %(default)s)")  # fmt: skip
    _add_learning(parser)
    add("--words", action="store_true", help="also say what words a vocabulary lacks, and how that flatters a model")
    add("--resamples", type=whole_number, default=1000, metavar="N",
        help="draws of the texts for the 95 %% intervals (default: %(default)s)")  # fmt: skip
    add("--seed", type=whole_number, default=0, metavar="N", help="of these draws (default: %(default)s)")
    add("--json", action="store_true", help="end with one JSON line")


def compare(options: Arguments) -> int:
    from groundup.tokenizer import compare as room
    from groundup.tokenizer.protocol import BytePair

    if options.resamples < 1:
        raise ValueError(f"--resamples {options.resamples}: expected at least 1")
    learned, measured = room.part(_read(options), options.train_fraction)
    texts = [sample.text for sample in learned]
    with progress_line() as show:
        tokenizers = room.four_tokenizers(texts, options.vocab_size, options.pattern, show)
        tokenizers += [BytePair(tokenizer, name) for name, tokenizer in load_named(options.tokenizer).items()]
        found = room.compare(tokenizers, measured, resamples=options.resamples, seed=options.seed, progress=show)
    _print_overall(tokenizers, found.rows, found.used)
    _print_groups(tokenizers, found.rows)
    print(f"Measured on {_size(measured):,} bytes in {plural(len(measured), 'text')}; words and BPE were learned from "
          f"{_size(learned):,} others. In [ ]: 95 % of {options.resamples:,} draws of the texts. Unknown words count "
          "as a token for all their bytes, though they cannot be written back.")  # fmt: skip
    result = {
        "learned_from_bytes": _size(learned), "measured_bytes": _size(measured), "texts": len(measured),
        "resamples": options.resamples, "seed": options.seed,
        "tokenizers": [{"name": t.name, "vocab_size": t.vocab_size, "used": found.used[t.name],
                        "lossless": t.lossless} for t in tokenizers],
        "rows": [{**asdict(row), "unknown_rate": row.unknown_rate,
                  "tokens_per_character": row.tokens_per_character} for row in found.rows],
    }  # fmt: skip
    if options.words:
        result["words"] = _words(texts, [sample.text for sample in measured], options.pattern)
    if options.json:
        print_json(result)
    return 0


def _print_overall(tokenizers: Sequence["TextTokenizer"], rows: Sequence["Row"], used: dict[str, int]) -> None:
    lines = [
        [t.name, f"{t.vocab_size:,}", f"{used[t.name]:,}", _ratio(row), f"{row.tokens_per_character:.3f}",
         f"{row.unknown_rate:.2%}", "yes" if t.lossless else "no"]
        for t, row in zip(tokenizers, (row for row in rows if row.kind == "all"), strict=True)
    ]  # fmt: skip
    headings = (
        "tokenizer",
        "vocabulary",
        "of it used",
        "bytes per token",
        "tokens per character",
        "unknown",
        "lossless",
    )
    print_table("All text", headings, lines)


def _print_groups(tokenizers: Sequence["TextTokenizer"], rows: Sequence["Row"]) -> None:
    """Bytes per token by file and by language, a column for each tokenizer."""
    for kind in ("file", "language"):
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if row.kind == kind:
                groups.setdefault(row.group, []).append(row)
        lines = [[name, f"{found[0].bytes:,}", *map(_ratio, found)] for name, found in groups.items()]
        if lines:
            print_table(f"Bytes per token by {kind}", (kind, "bytes", *(t.name for t in tokenizers)), lines)


def _ratio(row: "Row") -> str:
    interval = "" if row.low is None else f" [{row.low:.2f}, {row.high:.2f}]"
    return f"{row.bytes_per_token:.2f}{interval}"


def _words(train: Sequence[str], held_out: Sequence[str], pattern: str) -> list[dict[str, Any]]:
    from groundup.tokenizer.simple import WordTokenizer, unknown_flatters

    most = WordTokenizer.train(train, pattern=pattern).vocab_size
    sizes = [*(size for size in (10**power for power in range(1, 9)) if size < most), most]
    scores = [unknown_flatters(train, held_out, size, pattern) for size in sizes]
    headings = ("words in the vocabulary", "unknown", "perplexity", "bits per byte", "with spelling", "bits per byte")
    lines = [
        [f"{s.vocab_size:,}", f"{s.unknown_rate:.2%}", f"{s.flattered_perplexity:,.1f}",
         f"{s.flattered_bits_per_byte:.3f}", f"{s.honest_perplexity:,.1f}", f"{s.honest_bits_per_byte:.3f}"]
        for s in scores
    ]  # fmt: skip
    print_table("A unigram model of words, unknown ones guessed as such or spelled out", headings, lines)
    return [asdict(score) for score in scores]


# sweep, and what sequence length costs ----------------------------------------------------------------------------


def add_shape(parser: Parser) -> None:
    """The options that name the model whose costs are counted."""
    add = parser.add_argument
    add("--d-model", type=whole_number, default=512, metavar="N",
        help="width of the model that costs are counted for (default: %(default)s)")  # fmt: skip
    add("--num-layers", type=whole_number, default=8, metavar="N", help="its blocks (default: %(default)s)")


def cost_of_token(d_model: int, num_layers: int, tied: bool = False) -> "CostOfToken":
    """Training FLOPs per token of a Llama-style model, as a function of vocabulary and context."""
    from groundup import accounting, presets
    from groundup.tokenizer.sweep import Cost

    def cost(vocab_size: int, context: int) -> Cost:
        config = presets.llama(vocab_size=vocab_size, d_model=d_model, num_layers=num_layers,
                               context_length=context, tie_embeddings=tied)  # fmt: skip
        rows = [row for row in accounting.training_ledger(config, context, optimizer=None) if row.kind != "elementwise"]
        attention = sum(row.flops for row in rows if row.kind == "attention")
        head = sum(row.flops for row in rows if row.name == "head")
        return Cost(sum(row.flops for row in rows) / context, attention / context, head / context)

    return cost


def _model_in_words(options: Arguments) -> str:
    shape = f"{options.d_model} channels in {plural(options.num_layers, 'layer')}"
    return f"FLOPs: forward and backward of a Llama-style model with {shape}"


def sweep_options(parser: Parser) -> None:
    add = parser.add_argument
    _add_text(parser)
    add("--vocab-sizes", type=whole_number, nargs="+", metavar="N",
        help=f"sizes to measure (default: {' '.join(map(str, SWEPT_SIZES))}, as far as the text allows)")  # fmt: skip
    add("--tokenizer", metavar="T", help="cut this one down (default: learn one of the largest size)")
    _add_learning(parser)
    add_shape(parser)
    add("--tied", action="store_true", help="input and output share their table")
    add("--context-bytes", type=whole_number, default=4096, metavar="N",
        help="bytes of text that the model sees at once (default: %(default)s)")  # fmt: skip
    add("--train-flops", type=number, metavar="X",
        help="also train a model of each size with so many FLOPs, e.g. 1e13, and score it (default: no)")  # fmt: skip
    add("--seed", type=whole_number, default=0, metavar="N", help="of these models (default: %(default)s)")
    add_device(parser)
    add("--json", action="store_true", help="end with one JSON line")


def sweep(options: Arguments) -> int:
    from groundup.tokenizer import Tokenizer
    from groundup.tokenizer import sweep as room
    from groundup.tokenizer.compare import part

    if options.context_bytes < 1:
        raise ValueError(f"--context-bytes {options.context_bytes}: expected at least 1")
    learned, measured = part(_read(options), options.train_fraction)
    sizes = options.vocab_sizes or SWEPT_SIZES
    with progress_line() as show:
        if options.tokenizer:
            largest = Tokenizer.load(options.tokenizer)
        else:
            texts = [sample.text for sample in learned]
            largest = Tokenizer.train_from_iterator(texts, max(sizes), pattern=options.pattern, progress=show)
        if not options.vocab_sizes:
            sizes = [*(size for size in sizes if size < len(largest.vocab)), len(largest.vocab)]
        rows = room.sweep(
            largest, [sample.text for sample in measured], sizes, d_model=options.d_model, tied=options.tied,
            cost=cost_of_token(options.d_model, options.num_layers, options.tied),
            context_bytes=options.context_bytes, progress=lambda done, total: show("measuring", done, total),
        )  # fmt: skip
    _print_sweep(rows)
    print(
        f"Measured on {_size(measured):,} bytes. {_model_in_words(options)}; context: {options.context_bytes:,} bytes."
    )
    shape = {"preset": "llama", "d_model": options.d_model, "num_layers": options.num_layers, "tied": options.tied}
    result = {"measured_bytes": _size(measured), "context_bytes": options.context_bytes, "model": shape,
              "rows": [asdict(row) for row in rows]}  # fmt: skip
    if options.train_flops is not None:
        smaller = [room.prefix(largest, row.vocab_size) for row in rows]
        result["trained"] = _train_each(smaller, learned, measured, options)
    if options.json:
        print_json(result)
    return 0


def _train_each(
    tokenizers: Sequence["Tokenizer"], learned: Sequence["Sample"], measured: Sequence["Sample"], options: Arguments
) -> list[dict[str, Any]]:
    """Train a model with each tokenizer for the same FLOPs, print what they score, and return it."""
    from groundup.build.vocabulary import train_at_sizes

    scored, size = [], 0
    for sample in measured:
        if size < SCORED_BYTES:
            scored.append(sample.text)
            size += len(sample.text.encode("utf-8", "replace"))
    with progress_line() as show:
        trained = train_at_sizes(
            tokenizers, [sample.text for sample in learned], scored, flops=options.train_flops, d_model=options.d_model,
            num_layers=options.num_layers, context_bytes=options.context_bytes, tied=options.tied, seed=options.seed,
            device=options.device, progress=show,
        )  # fmt: skip
    lines = [
        [f"{one.vocab_size:,}", f"{one.steps:,}", f"{one.bytes_seen:,}", f"{one.epochs:.2f}", f"{one.seconds:.1f}",
         f"{one.bits_per_byte:.4f}"] for one in trained
    ]  # fmt: skip
    headings = ("vocabulary", "steps", "bytes seen", "times the text", "seconds", "bits per byte")
    print_table(f"Trained with {options.train_flops:.3g} FLOPs each", headings, lines)
    print(f"Scored on {size:,} bytes, each text alone. One seed each: small differences mean nothing.")
    return [asdict(one) for one in trained]


def _print_sweep(rows: Sequence[Any]) -> None:
    headings = ("vocabulary", "bytes per token", "embedding parameters", "tokens of context", "MFLOPs per byte",
                "of it output layer", "of it attention", "attention to bytes'")  # fmt: skip
    lines = [
        [f"{row.vocab_size:,}", f"{row.bytes_per_token:.3f}", f"{row.embedding_parameters:,}",
         f"{row.context_tokens:,}", f"{row.flops_per_byte / 1e6:,.2f}",
         f"{row.head_flops_per_byte / row.flops_per_byte:.1%}",
         f"{row.attention_flops_per_byte / row.flops_per_byte:.1%}", f"{row.attention_to_bytes:.3f}"]
        for row in rows
    ]  # fmt: skip
    print_table("Vocabulary size", headings, lines)


def explain(options: Arguments, bytes_per_token: float, vocab_size: int) -> list[dict[str, Any]]:
    """Print what windows of text cost in attention, read as bytes and by this tokenizer; returns the rows."""
    from groundup.tokenizer.sweep import sequence_costs

    cost = cost_of_token(options.d_model, options.num_layers)
    sizes = {"byte": 256, "this tokenizer": vocab_size}
    rows = sequence_costs({"byte": 1.0, "this tokenizer": bytes_per_token}, sizes, EXPLAINED_BYTES, cost)
    lines = [
        [f"{row.context_bytes:,}", row.tokenizer, f"{row.tokens:,}", f"{row.attention_flops / 1e9:,.2f}",
         f"{row.attention_share:.1%}", f"{row.attention_to_bytes:.3f}"]
        for row in rows
    ]  # fmt: skip
    title = f"Attention grows with the square of tokens per byte ({1 / bytes_per_token:.3f} here)"
    headings = ("bytes in a window", "read as", "tokens", "attention GFLOPs", "of all FLOPs", "to bytes'")
    print_table(title, headings, lines, words=(1,))
    print(f"{_model_in_words(options)}.")
    return [asdict(row) for row in rows]


# audit ------------------------------------------------------------------------------------------------------------


def audit_options(parser: Parser) -> None:
    add = parser.add_argument
    add("tokenizer", metavar="TOKENIZER", help="folder or tokenizer.json")
    _add_text(parser)
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
    samples = _read(options) if options.files else None
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
