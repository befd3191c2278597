r"""The GPT-4o pattern, one pre-token after the other.

    [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?
    [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?
    \p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+

A *word* is heads (letters that are not lower case, and marks), then tails (letters that are not upper case, and
marks). Letters without case and marks are both, which is what makes the matcher go back: where no lower case follows
the heads, the last one of them that may be a tail has to be it, and the word ends there.
"""

from groundup.tokenizer.fast.classify import bit, map_of, run_end, take_chunk
from groundup.tokenizer.fast.context import (
    ANY_LETTER,
    CHUNK,
    DONE,
    LETTER,
    LOWER,
    MARK,
    MAX_DIGITS,
    NEEDS_STAGE,
    NUMBER,
    OTHER,
    PLACES,
    STAGE,
    UPPER,
    WORDS,
)
from groundup.tokenizer.fast.machine import i32_at, i64, i64_at, kernel, u8_at
from groundup.tokenizer.fast.pieces import (
    contraction,
    digits_end,
    line_ends,
    mark_others,
    next_character,
    white_end,
)

ENTRIES = ("scan_o200k",)

# The maps of heads and tails take the place of those of the single classes, which are not needed any more.
HEADS, TAILS, EITHER = UPPER, LOWER, LETTER


@kernel
def scan_o200k(context):
    """Take a chunk of the text and list its pre-tokens (see context.py). DONE, or NEEDS_STAGE."""
    fields = i64_at(context)
    if take_chunk(context, True, False) == 0:
        return i64(NEEDS_STAGE)
    mark_others(context)
    _mark_heads_and_tails(context)
    places, size = i32_at(fields[PLACES]), fields[CHUNK]
    place = count = i64(0)
    while place < size:
        places[count] = place
        count += 1
        place = _end(context, place)
    places[count] = size
    fields[WORDS] = count
    return i64(DONE)


@kernel
def _mark_heads_and_tails(context):
    fields = i64_at(context)
    upper, lower = map_of(context, UPPER), map_of(context, LOWER)
    caseless, mark = map_of(context, LETTER), map_of(context, MARK)
    for word in range((fields[CHUNK] >> 6) + 2):
        either = caseless[word] | mark[word]
        upper[word] |= either
        lower[word] |= either
        caseless[word] = either


@kernel
def _end(context, place):
    """Where the pre-token ends that begins here."""
    fields = i64_at(context)
    if bit(map_of(context, NUMBER), place):
        return digits_end(context, place, fields[MAX_DIGITS])
    text, others = u8_at(fields[STAGE]), map_of(context, OTHER)
    letter = bit(map_of(context, ANY_LETTER), place)
    following = place if letter else next_character(context, place)
    if text[place] != ord("\n") and text[place] != ord("\r"):
        end = _word_end(context, place, following)
        if end > place:
            return _with_contraction(context, end)
    if bit(others, place):
        return line_ends(context, run_end(others, place), True)
    if text[place] == ord(" ") and bit(others, following):
        return line_ends(context, run_end(others, following), True)
    return white_end(context, place)


@kernel
def _word_end(context, place, following):
    """The end of a word whose letters begin at `following`, or else (a mark may be both) at `place`; 0 for none."""
    heads = map_of(context, HEADS)
    end = _cased_end(context, following)
    if end == 0 and following != place:
        end = _cased_end(context, place)
    if end == 0 and bit(heads, following):
        end = run_end(heads, following)
    return end


@kernel
def _cased_end(context, place):
    """The end of `heads* tails+` from here, or 0."""
    heads, tails, either = map_of(context, HEADS), map_of(context, TAILS), map_of(context, EITHER)
    end = run_end(heads, place)
    if bit(tails, end):
        return run_end(tails, end)
    last = end - 1
    while last >= place and not bit(either, last):
        last -= 1
    return last + 1 if last >= place else i64(0)


@kernel
def _with_contraction(context, end):
    fields = i64_at(context)
    if u8_at(fields[STAGE])[end] == ord("'"):
        return end + contraction(fields[STAGE] + end)
    return end
