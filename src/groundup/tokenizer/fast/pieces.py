"""What the scanners look at one by one: characters of several bytes, groups of digits, contractions."""

from groundup.tokenizer.fast.classify import bit, map_of, run_end
from groundup.tokenizer.fast.context import INSIDE, NUMBER
from groundup.tokenizer.fast.machine import i64, kernel, u8_at


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
