"""What the scanners that go from pre-token to pre-token have in common: characters, runs, contractions."""

from groundup.tokenizer.fast.classify import ALL, bit, map_of, run_end
from groundup.tokenizer.fast.context import (
    ANY_LETTER,
    CHUNK,
    END_TAKES_SPACE,
    INSIDE,
    NUMBER,
    OTHER,
    STAGE,
    WHITE,
)
from groundup.tokenizer.fast.machine import i64, i64_at, kernel, u8_at, u64


@kernel
def mark_others(context):
    """Make the map of the characters that are neither letters nor numbers nor white space, up to the chunk's end."""
    fields = i64_at(context)
    letters, number, white = map_of(context, ANY_LETTER), map_of(context, NUMBER), map_of(context, WHITE)
    others = map_of(context, OTHER)
    size = fields[CHUNK]
    for word in range((size >> 6) + 1):
        others[word] = ~(letters[word] | number[word] | white[word])
    others[size >> 6] &= ~(ALL << u64(size & 63))
    others[(size >> 6) + 1] = u64(0)


@kernel
def next_character(context, place):
    """Where the character after the one at `place` begins."""
    return run_end(map_of(context, INSIDE), place + 1)


@kernel
def digits_end(context, place, max_digits):
    """The end of a group of at most `max_digits` numbers."""
    number = map_of(context, NUMBER)
    for _ in range(max_digits):
        if not bit(number, place):
            break
        place = next_character(context, place)
    return place


@kernel
def white_end(context, place):
    r"""The end of white space by `\s++$|\s*[\r\n]+|\s+(?!\S)|\s`; the first only where END_TAKES_SPACE says so."""
    fields = i64_at(context)
    size = fields[CHUNK]
    end = run_end(map_of(context, WHITE), place)
    if end == size and fields[END_TAKES_SPACE] != 0:
        return end
    text = u8_at(fields[STAGE])
    line = end - 1
    while line >= place and not (text[line] == ord("\n") or text[line] == ord("\r")):
        line -= 1
    if line >= place:
        return line + 1
    if end == size:
        return end
    last = end - 1
    inside = map_of(context, INSIDE)
    while bit(inside, last):
        last -= 1
    return last if last > place else end


@kernel
def line_ends(context, place, slashes):
    r"""The end of `[\r\n]*`, or of `[\r\n/]*`."""
    text = u8_at(i64_at(context)[STAGE])
    while text[place] == ord("\n") or text[place] == ord("\r") or (slashes and text[place] == ord("/")):
        place += 1
    return place


@kernel
def contraction(address):
    """Bytes of a contraction ('s 't 'd 'm 'll 've 're, in any case) at an apostrophe, or 0.

    Without regard to case the long s, U+017F, is an s too.
    """
    text = u8_at(address)
    first, second = text[1] | 0x20, text[2] | 0x20
    if first == ord("s") or first == ord("t") or first == ord("d") or first == ord("m"):
        return i64(2)
    if (first == ord("l") and second == ord("l")) or ((first == ord("v") or first == ord("r")) and second == ord("e")):
        return i64(3)
    if text[1] == 0xC5 and text[2] == 0xBF:
        return i64(3)
    return i64(0)
