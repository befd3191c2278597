"""`groundup tokenizer compare` and `sweep`, and what the length of sequences costs in attention."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from groundup.cli_parts import (
    Arguments,
    Parser,
    add_device,
    number,
    print_json,
    print_table,
    progress_line,
    whole_number,
)
from groundup.cli_tokenizer_text import add_learning, add_text, load_named, read_samples, size_of
from groundup.config import plural

if TYPE_CHECKING:
    from groundup.tokenizer import Tokenizer
    from groundup.tokenizer.compare import Row, Sample
    from groundup.tokenizer.protocol import TextTokenizer
    from groundup.tokenizer.sweep import CostOfToken

SWEPT_SIZES = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
EXPLAINED_BYTES = (1024, 4096, 16_384, 65_536)
# Enough to tell models apart; scoring more would take longer than training does.
SCORED_BYTES = 500_000


# compare ----------------------------------------------------------------------------------------------------------


def compare_options(parser: Parser) -> None:
    add = parser.add_argument
    add_text(parser, "the bundled corpus")
    add("--tokenizer", action="append", default=[], metavar="T",
        help="a folder or tokenizer.json to compare as well; may be repeated (default: none)")  # fmt: skip
    add("--vocab-size", type=whole_number, default=8192, metavar="N",
        help="tokens of the BPE that is learned here (default: %(default)s)")  # fmt: skip
    add_learning(parser)
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
    learned, measured = room.part(read_samples(options), options.train_fraction)
    texts = [sample.text for sample in learned]
    with progress_line() as show:
        tokenizers = room.four_tokenizers(texts, options.vocab_size, options.pattern, show)
        tokenizers += [BytePair(tokenizer, name) for name, tokenizer in load_named(options.tokenizer).items()]
        found = room.compare(tokenizers, measured, resamples=options.resamples, seed=options.seed, progress=show)
    _print_overall(tokenizers, found.rows, found.used)
    _print_groups(tokenizers, found.rows)
    print(f"Measured on {size_of(measured):,} bytes in {plural(len(measured), 'text')}; words and BPE were learned "
          f"from {size_of(learned):,} others. In [ ]: 95 % of {options.resamples:,} draws of the texts. Unknown words "
          "count as a token for all their bytes, though they cannot be written back.")  # fmt: skip
    result = {
        "learned_from_bytes": size_of(learned), "measured_bytes": size_of(measured), "texts": len(measured),
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
    add_text(parser, "the bundled corpus")
    add("--vocab-sizes", type=whole_number, nargs="+", metavar="N",
        help=f"sizes to measure (default: {' '.join(map(str, SWEPT_SIZES))}, as far as the text allows)")  # fmt: skip
    add("--tokenizer", metavar="T", help="cut this one down (default: learn one of the largest size)")
    add_learning(parser)
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
    learned, measured = part(read_samples(options), options.train_fraction)
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
    print(f"Measured on {size_of(measured):,} bytes. {_model_in_words(options)}, on {options.context_bytes:,} bytes.")
    shape = {"preset": "llama", "d_model": options.d_model, "num_layers": options.num_layers, "tied": options.tied}
    result = {"measured_bytes": size_of(measured), "context_bytes": options.context_bytes, "model": shape,
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
