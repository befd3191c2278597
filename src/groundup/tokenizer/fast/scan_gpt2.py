r"""The GPT-2 pattern (and SmolLM2's, which cuts numbers into digits), 64 bytes at a time.

    '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s

No alternative looks at more than one neighbour of a run, so whether a pre-token starts at a byte follows from the
classes of that byte and the ones beside it: shifts and logic on whole words of the bit maps. The contractions are the
exception, and rare: they are looked at one by one.
"""

from groundup.tokenizer.fast.classify import ALL, ONE, clear_bit, map_of, set_bit, take_chunk
from groundup.tokenizer.fast.context import (
    ANY_LETTER,
    APOSTROPHE,
    CHUNK,
    DONE,
    HAS_APOSTROPHE,
    HAS_FOREIGN,
    MAX_DIGITS,
    NEEDS_STAGE,
    NUMBER,
    SPACE,
    STAGE,
    STARTS,
    WHITE,
    WORDS,
)
from groundup.tokenizer.fast.machine import (
    i64,
    i64_at,
    kernel,
    trailing_zeros,
    u8_at,
    u64,
)
from groundup.tokenizer.fast.starts import list_places, move_to_heads, shifted

ENTRIES = ("scan_gpt2",)


@kernel
def scan_gpt2(context):
    """Take a chunk of the text and list its pre-tokens (see context.py). DONE, or NEEDS_STAGE."""
    fields = i64_at(context)
    if take_chunk(context, False, False) == 0:
        return i64(NEEDS_STAGE)
    _mark_starts(context)
    fields[WORDS] = list_places(context)
    return i64(DONE)


@kernel
def _mark_starts(context):
    fields = i64_at(context)
    size = fields[CHUNK]
    white = map_of(context, WHITE)
    # What follows the end counts as white space: a run of it there is one pre-token.
    white[size >> 6] |= ALL << u64(size & 63)
    white[(size >> 6) + 1] = ALL
    _mark_runs(context)
    if fields[HAS_FOREIGN] != 0:
        move_to_heads(context)
    if fields[HAS_APOSTROPHE] != 0:
        _mark_contractions(context)


@kernel
def _mark_runs(context):
    """Starts by the classes of a byte and its neighbours. No word depends on the result of another, so the compiler
    does several at a time."""
    fields = i64_at(context)
    letters, number, white = map_of(context, ANY_LETTER), map_of(context, NUMBER), map_of(context, WHITE)
    space, starts = map_of(context, SPACE), map_of(context, STARTS)
    alone = ALL if fields[MAX_DIGITS] == 1 else u64(0)  # digits are pre-tokens of their own, and like an end of text
    for word in range((fields[CHUNK] + 63) >> 6):
        letter, digit, blank = letters[word], number[word], white[word]
        other = ~(letter | digit | blank)
        before = ~(letters[word - 1] | number[word - 1] | white[word - 1]) & (ALL if word > 0 else u64(0))
        same = (letter & shifted(letter, letters[word - 1])) | (other & shifted(other, before))
        same |= digit & shifted(digit, number[word - 1]) & ~alone
        same |= shifted(space[word], space[word - 1]) & ~(digit & alone)
        ends = (blank | (digit & alone)) >> ONE
        ends |= (white[word + 1] | (number[word + 1] & alone)) << u64(63)
        starts[word] = (~blank & ~same) | (blank & ~(shifted(blank, white[word - 1]) & ends))


@kernel
def _mark_contractions(context):
    fields = i64_at(context)
    letters, number, white = map_of(context, ANY_LETTER), map_of(context, NUMBER), map_of(context, WHITE)
    space, starts, apostrophe = map_of(context, SPACE), map_of(context, STARTS), map_of(context, APOSTROPHE)
    last_taken = u64(0)
    for word in range((fields[CHUNK] + 63) >> 6):
        other = ~(letters[word] | number[word] | white[word]) | space[word]
        candidates = apostrophe[word] & ~((other << ONE) | last_taken)
        last_taken = other >> u64(63)
        while candidates != u64(0):
            place = (word << 6) + trailing_zeros(candidates)
            candidates &= candidates - ONE
            length = _contraction(fields[STAGE] + place)
            if length != 0:
                clear_bit(starts, place + 1)
                set_bit(starts, place + length)


@kernel
def _contraction(address):
    """Bytes of the contraction ('s 't 'd 'm 'll 've 're) at an apostrophe, or 0."""
    text = u8_at(address)
    first, second = text[1], text[2]
    if first == ord("s") or first == ord("t") or first == ord("d") or first == ord("m"):
        return i64(2)
    if (first == ord("l") and second == ord("l")) or ((first == ord("v") or first == ord("r")) and second == ord("e")):
        return i64(3)
    return i64(0)
