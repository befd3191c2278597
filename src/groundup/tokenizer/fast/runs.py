"""What the scanners of GPT-4's and GPT-4o's patterns have in common: the maps of white space and of single signs, the
starts that follow from them, and numbers in groups.

A *sign* is a character that is neither a letter nor a number nor white space. TAKEN has the characters that belong to
what is before them, whatever their class: no pre-token starts there, and one starts behind them.
"""

from groundup.tokenizer.fast.classify import ALL, ONE, map_of, run_end, set_bit
from groundup.tokenizer.fast.context import (
    ANY_LETTER,
    BEFORE_LINE_END,
    CHUNK,
    END_TAKES_SPACE,
    HAS_FOREIGN,
    INSIDE,
    LENGTH,
    LINE_END,
    MAX_DIGITS,
    NUMBER,
    POSITION,
    PREFIX,
    SPACE,
    STARTS,
    TAKEN,
    WHITE,
)
from groundup.tokenizer.fast.machine import i64_at, kernel, trailing_zeros, u64
from groundup.tokenizer.fast.pieces import digits_end
from groundup.tokenizer.fast.starts import flood_down, flood_up, shifted


@kernel
def white_beyond_the_end(context):
    """Count what follows the chunk as white space: none in front of it is then followed by anything else."""
    size, white = i64_at(context)[CHUNK], map_of(context, WHITE)
    white[size >> 6] |= ALL << u64(size & 63)
    white[(size >> 6) + 1] = ALL


@kernel
def signs(context, word):
    """The characters of a word of the maps that are neither letters nor numbers nor white space."""
    return ~(map_of(context, ANY_LETTER)[word] | map_of(context, NUMBER)[word] | map_of(context, WHITE)[word])


@kernel
def first_signs(context, word, sign, before, last):
    """Signs that come first after something that is neither a sign nor a space: all bytes of that character.

    `before` and `last` are the signs, and the answer, of the word before.
    """
    space, inside = map_of(context, SPACE), map_of(context, INSIDE)
    first = sign & ~(shifted(sign, before) | shifted(space[word], space[word - 1]))
    if i64_at(context)[HAS_FOREIGN] != 0:
        first |= (last >> u64(63)) & inside[word]
        first = flood_up(first, inside[word]) if (first << ONE) & inside[word] != u64(0) else first
    return first


@kernel
def mark_prefixes(context):
    """Signs that take the letters behind them along, where there are any."""
    fields = i64_at(context)
    prefix, taken = map_of(context, PREFIX), map_of(context, TAKEN)
    before = last = u64(0)
    for word in range((fields[CHUNK] + 63) >> 6):
        now = signs(context, word) & ~taken[word]
        last = first_signs(context, word, now, before, last)
        prefix[word] = last
        before = now


@kernel
def mark_before_line_ends(context):
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
def mark_runs(context):
    """Starts by the classes of a byte and its neighbours, and by the maps made before."""
    fields = i64_at(context)
    letters, number, white = map_of(context, ANY_LETTER), map_of(context, NUMBER), map_of(context, WHITE)
    space, lines, taken = map_of(context, SPACE), map_of(context, LINE_END), map_of(context, TAKEN)
    marked, prefix, starts = map_of(context, BEFORE_LINE_END), map_of(context, PREFIX), map_of(context, STARTS)
    before = u64(0)
    for word in range((fields[CHUNK] + 63) >> 6):
        letter, digit, blank, line = letters[word], number[word], white[word], lines[word]
        other = ~(letter | digit | blank | taken[word])
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
def mark_digits(context):
    """Numbers in groups of at most MAX_DIGITS."""
    fields = i64_at(context)
    number, starts = map_of(context, NUMBER), map_of(context, STARTS)
    for word in range((fields[CHUNK] + 63) >> 6):
        runs = number[word] & ~shifted(number[word], number[word - 1])
        while runs != u64(0):
            place = (word << 6) + trailing_zeros(runs)
            runs &= runs - ONE
            end = run_end(number, place)
            while end - place > fields[MAX_DIGITS]:  # bytes: as characters they may be one group, which ends where
                place = _group_end(context, place)  # the number does, and something starts there anyway
                set_bit(starts, place)


@kernel
def _group_end(context, place):
    fields = i64_at(context)
    if fields[HAS_FOREIGN] == 0:
        return place + fields[MAX_DIGITS]
    return digits_end(context, place, fields[MAX_DIGITS])
