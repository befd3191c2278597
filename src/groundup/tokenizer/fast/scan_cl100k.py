r"""The GPT-4 pattern and its relatives (Llama-3, Qwen-2), 64 bytes at a time.

    '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s++$|\s*[\r\n]+|\s+(?!\S)|\s

Llama-3's has no `\s++$`, Qwen-2's has one number at a time. Besides what a byte and its neighbours are, three things
decide: whether line ends belong to the signs before them, whether white space has a line end further on in its run,
and whether a sign stands alone, so that it takes the letters behind it along. Each gets a map; contractions and groups
of digits are looked at one by one.
"""

from groundup.tokenizer.fast.classify import ALL, ONE, map_of, run_end, set_bit, take_chunk
from groundup.tokenizer.fast.context import (
    ANY_LETTER,
    APOSTROPHE,
    BEFORE_LINE_END,
    CHUNK,
    DONE,
    END_TAKES_SPACE,
    HAS_APOSTROPHE,
    HAS_FOREIGN,
    INSIDE,
    LENGTH,
    LINE_END,
    MAX_DIGITS,
    NEEDS_STAGE,
    NUMBER,
    POSITION,
    PREFIX,
    SPACE,
    STAGE,
    STARTS,
    TAKEN,
    WHITE,
    WORDS,
)
from groundup.tokenizer.fast.machine import i64, i64_at, kernel, trailing_zeros, u64
from groundup.tokenizer.fast.pieces import contraction, digits_end
from groundup.tokenizer.fast.starts import flood_down, flood_up, list_places, move_to_heads, shifted

ENTRIES = ("scan_cl100k",)


@kernel
def scan_cl100k(context):
    """Take a chunk of the text and list its pre-tokens (see context.py). DONE, or NEEDS_STAGE."""
    fields = i64_at(context)
    if take_chunk(context, False, True) == 0:
        return i64(NEEDS_STAGE)
    size, white = fields[CHUNK], map_of(context, WHITE)
    # What follows the end counts as white space: none in front of it is followed by anything else.
    white[size >> 6] |= ALL << u64(size & 63)
    white[(size >> 6) + 1] = ALL
    _mark_taken_line_ends(context)
    _mark_before_line_ends(context)
    _mark_prefixes(context)
    _mark_runs(context)
    if fields[HAS_FOREIGN] != 0:
        move_to_heads(context)
    _mark_digits(context)
    if fields[HAS_APOSTROPHE] != 0:
        _mark_contractions(context)
    fields[WORDS] = list_places(context)
    return i64(DONE)


@kernel
def signs(context, word):
    """The characters of a word of the maps that are neither letters nor numbers nor white space."""
    return ~(map_of(context, ANY_LETTER)[word] | map_of(context, NUMBER)[word] | map_of(context, WHITE)[word])


@kernel
def _mark_taken_line_ends(context):
    r"""The line ends of `[^\s\p{L}\p{N}]+[\r\n]*`: those that follow a sign without a gap."""
    fields = i64_at(context)
    lines, taken = map_of(context, LINE_END), map_of(context, TAKEN)
    before = last = u64(0)
    for word in range((fields[CHUNK] + 63) >> 6):
        now = signs(context, word)
        begins = lines[word] & (shifted(now, before) | last)
        taken[word] = flood_up(begins, lines[word]) if begins != u64(0) else begins
        before, last = now, taken[word] >> u64(63)


@kernel
def _mark_before_line_ends(context):
    r"""The white space of `\s*[\r\n]+`, and that of `\s++$` as if a line end came after the end."""
    fields = i64_at(context)
    lines, white, marked = map_of(context, LINE_END), map_of(context, WHITE), map_of(context, BEFORE_LINE_END)
    size = fields[CHUNK]
    at_end = fields[END_TAKES_SPACE] != 0 and fields[POSITION] == fields[LENGTH]
    last = size >> 6
    marked[last + 1] = u64(0)
    following = u64(0)
    for back in range(last + 1):
        word = last - back
        seeds = lines[word] | ((following << u64(63)) & white[word])
        if at_end and word == last:
            seeds |= ONE << u64(size & 63)
        marked[word] = flood_down(seeds, white[word]) if seeds != u64(0) else seeds
        following = marked[word] & ONE


@kernel
def _mark_prefixes(context):
    """Signs that come first after something that is neither a sign nor a space: all bytes of that character."""
    fields = i64_at(context)
    space, inside, prefix = map_of(context, SPACE), map_of(context, INSIDE), map_of(context, PREFIX)
    before = last = u64(0)
    for word in range((fields[CHUNK] + 63) >> 6):
        now = signs(context, word)
        first = now & ~(shifted(now, before) | shifted(space[word], space[word - 1]))
        if fields[HAS_FOREIGN] != 0:
            first = flood_up(first | (last & inside[word]), inside[word])
        prefix[word] = first
        before, last = now, first >> u64(63)


@kernel
def _mark_runs(context):
    """Starts by the classes of a byte and its neighbours, and by the maps made before."""
    fields = i64_at(context)
    letters, number, white = map_of(context, ANY_LETTER), map_of(context, NUMBER), map_of(context, WHITE)
    space, lines, taken = map_of(context, SPACE), map_of(context, LINE_END), map_of(context, TAKEN)
    marked, prefix, starts = map_of(context, BEFORE_LINE_END), map_of(context, PREFIX), map_of(context, STARTS)
    before = u64(0)
    for word in range((fields[CHUNK] + 63) >> 6):
        letter, digit, blank, line = letters[word], number[word], white[word], lines[word]
        other = ~(letter | digit | blank)
        after_blank = shifted(blank, white[word - 1])
        after_line = shifted(line, lines[word - 1])
        joined = (
            shifted(letter, letters[word - 1]) | (after_blank & ~after_line) | shifted(prefix[word], prefix[word - 1])
        )
        begins = letter & ~joined
        begins |= digit & ~shifted(digit, number[word - 1])
        begins |= other & ~(shifted(other, before) | shifted(space[word], space[word - 1]))
        begins |= blank & ~taken[word] & (~after_blank | shifted(taken[word], taken[word - 1]))
        begins |= blank & ~marked[word] & after_line
        begins |= blank & ~line & ~((blank >> ONE) | (white[word + 1] << u64(63)))
        starts[word] = begins
        before = other


@kernel
def _mark_digits(context):
    """Numbers in groups of at most MAX_DIGITS."""
    fields = i64_at(context)
    number, starts = map_of(context, NUMBER), map_of(context, STARTS)
    for word in range((fields[CHUNK] + 63) >> 6):
        runs = number[word] & ~shifted(number[word], number[word - 1])
        while runs != u64(0):
            place = (word << 6) + trailing_zeros(runs)
            runs &= runs - ONE
            end = run_end(number, place)
            place = digits_end(context, place, fields[MAX_DIGITS])
            while place < end:
                set_bit(starts, place)
                place = digits_end(context, place, fields[MAX_DIGITS])


@kernel
def _mark_contractions(context):
    fields = i64_at(context)
    apostrophe, starts = map_of(context, APOSTROPHE), map_of(context, STARTS)
    for word in range((fields[CHUNK] + 63) >> 6):
        candidates = apostrophe[word] & starts[word]
        while candidates != u64(0):
            place = (word << 6) + trailing_zeros(candidates)
            candidates &= candidates - ONE
            length = contraction(fields[STAGE] + place)
            if length != 0:
                set_bit(starts, place + length)
