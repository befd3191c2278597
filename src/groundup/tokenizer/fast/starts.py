"""What the scanners have in common that find the starts of pre-tokens by logic on whole words of bit maps."""

from groundup.tokenizer.fast.classify import ALL, ONE, bit, clear_bit, map_of, set_bit
from groundup.tokenizer.fast.context import CHUNK, INSIDE, PLACES, STARTS, WHITE
from groundup.tokenizer.fast.machine import (
    count_ones,
    i32_at,
    i64,
    i64_at,
    kernel,
    trailing_zeros,
    u64,
    write_places,
)


@kernel
def shifted(bits, before):
    """Each bit at the place after its own; the last one of the word before comes first."""
    return (bits << ONE) | (before >> u64(63))


@kernel
def flood_up(seeds, through):
    """The seeds, and all ones of `through` that follow one of them without a gap (Kogge and Stone 1973)."""
    for step in (1, 2, 4, 8, 16, 32):
        seeds |= through & (seeds << u64(step))
        through &= through << u64(step)
    return seeds


@kernel
def flood_down(seeds, through):
    """The seeds, and all ones of `through` that stand before one of them without a gap."""
    for step in (1, 2, 4, 8, 16, 32):
        seeds |= through & (seeds >> u64(step))
        through &= through >> u64(step)
    return seeds


@kernel
def move_to_heads(context):
    """A start that fell on a later byte of a character belongs to its first: the last white space of a run."""
    fields = i64_at(context)
    inside, starts, white = map_of(context, INSIDE), map_of(context, STARTS), map_of(context, WHITE)
    for word in range((fields[CHUNK] + 63) >> 6):
        wrong = starts[word] & inside[word]
        while wrong != u64(0):
            place = (word << 6) + trailing_zeros(wrong)
            wrong &= wrong - ONE
            clear_bit(starts, place)
            if bit(white, place):
                while bit(inside, place):
                    place -= 1
                set_bit(starts, place)


@kernel
def list_places(context):
    """Write the places of the starts, and the end of the chunk, to PLACES; how many pre-tokens there are."""
    fields = i64_at(context)
    size, starts, places = fields[CHUNK], map_of(context, STARTS), i32_at(fields[PLACES])
    last = (size - 1) >> 6
    starts[last] &= ALL >> u64(63 - ((size - 1) & 63))
    count = i64(0)
    for word in range(last + 1):
        bits = starts[word]
        write_places(bits, word << 6, fields[PLACES] + 4 * count)
        count += count_ones(bits)
    places[count] = size
    return count
