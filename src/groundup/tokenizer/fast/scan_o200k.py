r"""The GPT-4o pattern, 64 bytes at a time.

    [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?
    [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?
    \p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+

Numbers, white space and single signs in front of letters are as in GPT-4's pattern (runs.py). What differs:

*Words* (the first two lines). In a run of letters let U be one of upper case, L of lower, C one without case, which may
be either. A word takes all U and C that it can, then all L and C. So once there was an L, only C and L continue it: a
word starts at a U behind `L C*`. Where the run ends before there was an L, the matcher goes back to the last C, which
has to be the `+` of the first line: a word starts behind the last C if there are only U from there to the run's end.
(Without a C the second line takes all of them.) These are all starts inside a run; both are at a U behind an L or C.

*Combining marks*, which are C and signs. Where a piece may start, the first two lines come first, and match: a mark
there begins a word, and one behind a single sign or white space does too, like a C. Only where ` ?[^\s\p{L}\p{N}]+` has
begun before does it run over marks: behind two signs, or a space and a sign. So each mark is either a letter or a sign,
which is found from the left to the right before anything else.

*Contractions* end the word that they follow, and the letters behind them begin anew. They count as taken by what is
before them, and their letters as none. Since "a's's" has but one, they are looked at one by one from the left.

*Slashes* among the line ends that signs take are taken too, so that what follows them begins anew.
"""

from groundup.tokenizer.fast.classify import ONE, bit, clear_bit, map_of, set_bit, take_chunk
from groundup.tokenizer.fast.context import (
    ANY_LETTER,
    APOSTROPHE,
    CHUNK,
    DONE,
    HAS_APOSTROPHE,
    HAS_FOREIGN,
    LETTER,
    LINE_END,
    LOWER,
    MARK,
    NEEDS_STAGE,
    STAGE,
    STARTS,
    TAKEN,
    UPPER,
    WORDS,
)
from groundup.tokenizer.fast.machine import equal_bytes, i64, i64_at, kernel, trailing_zeros, u64
from groundup.tokenizer.fast.pieces import contraction
from groundup.tokenizer.fast.runs import (
    first_signs,
    mark_before_line_ends,
    mark_digits,
    mark_prefixes,
    mark_runs,
    signs,
    white_beyond_the_end,
)
from groundup.tokenizer.fast.starts import flood_down, flood_up, list_places, move_to_heads, shifted

ENTRIES = ("scan_o200k",)

CASELESS = LETTER  # the marks that are letters come to this map too


@kernel
def scan_o200k(context):
    """Take a chunk of the text and list its pre-tokens (see context.py). DONE, or NEEDS_STAGE."""
    fields = i64_at(context)
    if take_chunk(context, True, True) == 0:
        return i64(NEEDS_STAGE)
    white_beyond_the_end(context)
    if fields[HAS_FOREIGN] != 0 and _any(context, MARK):
        _part_marks(context)
    _mark_taken(context)
    mark_before_line_ends(context)
    mark_prefixes(context)
    if fields[HAS_APOSTROPHE] != 0:
        _take_contractions(context)
    mark_runs(context)
    if fields[HAS_FOREIGN] != 0:
        move_to_heads(context)
    _mark_words(context)
    mark_digits(context)
    fields[WORDS] = list_places(context)
    return i64(DONE)


@kernel
def _any(context, number):
    """Whether a map has any bit."""
    bits, found = map_of(context, number), u64(0)
    for word in range((i64_at(context)[CHUNK] + 63) >> 6):
        found |= bits[word]
    return found != u64(0)


@kernel
def _part_marks(context):
    """Count each mark to the letters without case, or to the signs.

    A mark is a sign where it follows a sign that is no prefix. Then all marks and signs are signs up to the next that
    is neither. Line ends behind such a stretch are taken then, and so may be the slashes behind them: what follows a
    slash that is behind a line end has to wait until it is known what is before.
    """
    letters, caseless, mark = map_of(context, ANY_LETTER), map_of(context, CASELESS), map_of(context, MARK)
    sign_before = prefix_before = taken_before = u64(0)
    for word in range((i64_at(context)[CHUNK] + 63) >> 6):
        marks = mark[word]
        letters[word] |= marks
        while True:
            sign = signs(context, word)
            taken = _taken(context, word, sign, sign_before, taken_before)
            sign &= ~taken
            prefix = first_signs(context, word, sign, sign_before, prefix_before)
            wrong = marks & shifted(sign & ~prefix, sign_before & ~prefix_before)
            if wrong == u64(0):
                break
            stretch = flood_up(wrong & _settled(context, word, wrong), sign | marks)
            letters[word] &= ~(stretch & marks)
            marks &= ~stretch
        caseless[word] |= marks
        sign_before, prefix_before, taken_before = sign, prefix, taken


@kernel
def _settled(context, word, wrong):
    """The places in front of the first slash behind a line end that comes after the lowest of these bits."""
    lines = map_of(context, LINE_END)
    slashes = equal_bytes(i64_at(context)[STAGE] + (word << 6), ord("/")) & shifted(lines[word], lines[word - 1])
    later = slashes & ~(wrong ^ (wrong - ONE))
    return (later & (~later + ONE)) - ONE


@kernel
def _taken(context, word, sign, before, last):
    r"""The line ends and slashes that `[\r\n/]*` takes behind signs; slashes before the first line end are signs.

    `before` and `last` are the signs, and the answer, of the word before.
    """
    lines = map_of(context, LINE_END)[word]
    begins = lines & shifted(sign, before)
    continues = last >> u64(63)
    if begins | continues == u64(0):
        return begins
    through = lines | equal_bytes(i64_at(context)[STAGE] + (word << 6), ord("/"))
    return flood_up(begins | (continues & through), through)


@kernel
def _mark_taken(context):
    taken = map_of(context, TAKEN)
    before = last = u64(0)
    for word in range((i64_at(context)[CHUNK] + 63) >> 6):
        now = signs(context, word)
        last = _taken(context, word, now, before, last)
        taken[word] = last
        before = now & ~last


@kernel
def _take_contractions(context):
    """Contractions behind a letter are taken by its word."""
    fields = i64_at(context)
    letters, apostrophe = map_of(context, ANY_LETTER), map_of(context, APOSTROPHE)
    for word in range((fields[CHUNK] + 63) >> 6):
        candidates = apostrophe[word] & shifted(letters[word], letters[word - 1])
        while candidates != u64(0):
            place = (word << 6) + trailing_zeros(candidates)
            candidates &= candidates - ONE
            length = contraction(fields[STAGE] + place)
            if length != 0 and bit(letters, place - 1):  # not so where the letter is itself of a contraction
                _take(context, place, length)


@kernel
def _take(context, place, length):
    letters, lower, taken = map_of(context, ANY_LETTER), map_of(context, LOWER), map_of(context, TAKEN)
    set_bit(taken, place)
    for inside in range(place + 1, place + length):
        set_bit(taken, inside)
        clear_bit(letters, inside)
        clear_bit(lower, inside)


@kernel
def _mark_words(context):
    """Starts inside runs of letters."""
    if i64_at(context)[HAS_FOREIGN] != 0 and _any(context, CASELESS):
        _lengthen_lower(context)
        _mark_behind_last_caseless(context)
    upper, lower, starts = map_of(context, UPPER), map_of(context, LOWER), map_of(context, STARTS)
    for word in range((i64_at(context)[CHUNK] + 63) >> 6):
        starts[word] |= upper[word] & shifted(lower[word], lower[word - 1])


@kernel
def _lengthen_lower(context):
    """Count letters without case behind lower case to it."""
    lower, caseless = map_of(context, LOWER), map_of(context, CASELESS)
    last = u64(0)
    for word in range((i64_at(context)[CHUNK] + 63) >> 6):
        seeds = lower[word] | ((last >> u64(63)) & caseless[word])
        last = flood_up(seeds, caseless[word]) if seeds != u64(0) else seeds
        lower[word] = last


@kernel
def _mark_behind_last_caseless(context):
    """Upper case between a letter without case and the end of the run of letters."""
    upper, caseless = map_of(context, UPPER), map_of(context, CASELESS)
    letters, starts = map_of(context, ANY_LETTER), map_of(context, STARTS)
    words = (i64_at(context)[CHUNK] + 63) >> 6
    following = u64(0)
    for back in range(words):
        word = words - 1 - back
        before_letter = (letters[word] >> ONE) | (letters[word + 1] << u64(63))
        seeds = upper[word] & (~before_letter | (following << u64(63)))
        to_the_end = flood_down(seeds, upper[word]) if seeds != u64(0) else seeds
        starts[word] |= to_the_end & shifted(caseless[word], caseless[word - 1])
        following = to_the_end & ONE
