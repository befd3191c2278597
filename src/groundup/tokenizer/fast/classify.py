"""From bytes to bit maps: which bytes of a chunk belong to letters, numbers, white space.

ASCII is classified 64 bytes at a time by comparisons; every other character is decoded and looked up in the Unicode
table. All bytes of a character carry its class, so that a run of letters is a run of ones. A byte that is not part
of valid UTF-8 is a character of its own, of the class OTHER.
"""

from groundup.tokenizer.fast.context import (
    ANY_LETTER,
    APOSTROPHE,
    CHUNK,
    CLASS_INDEX,
    CLASS_PAGES,
    HAS_APOSTROPHE,
    HAS_FOREIGN,
    HAS_LINE_END,
    HAS_ZERO,
    INSIDE,
    INVALID,
    LENGTH,
    LETTER,
    LINE_END,
    LOWER,
    MAP_WORDS,
    MAPS,
    MARK,
    NUMBER,
    OTHER,
    PADDING,
    POSITION,
    SPACE,
    STAGE,
    STAGE_SIZE,
    STARTS,
    TEXT,
    UPPER,
    WHITE,
)
from groundup.tokenizer.fast.machine import (
    byte_masks,
    copy,
    fill,
    i64,
    i64_at,
    kernel,
    leading_zeros,
    trailing_zeros,
    u8_at,
    u16_at,
    u64,
    u64_at,
)

ONE, ALL = u64(1), u64(0xFFFF_FFFF_FFFF_FFFF)
_BEGINS_NO_CHARACTER = i64(OTHER | 1 << 8)


@kernel
def map_of(context, number):
    """The bit map of a class."""
    fields = i64_at(context)
    return u64_at(fields[MAPS] + number * fields[MAP_WORDS] * 8)


@kernel
def bit(bits, place):
    """Whether the bit at this place is set."""
    return (bits[place >> 6] >> u64(place & 63)) & ONE != u64(0)


@kernel
def set_bit(bits, place):
    bits[place >> 6] |= ONE << u64(place & 63)


@kernel
def clear_bit(bits, place):
    bits[place >> 6] &= ~(ONE << u64(place & 63))


@kernel
def run_end(bits, place):
    """The first place from here on whose bit is not set."""
    word = place >> 6
    rest = ~bits[word] >> u64(place & 63)
    if rest != u64(0):
        return place + trailing_zeros(rest)
    word += 1
    while bits[word] == ALL:
        word += 1
    return (word << 6) + trailing_zeros(~bits[word])


@kernel
def take_chunk(context, cased, lines):
    """Copy the next chunk to the stage and make its maps; its length, or 0 when the stage is too short.

    `cased` and `lines` say whether the maps of upper and lower case and of line ends are wanted.

    A chunk is the rest of the text, or ends where every published pattern ends a pre-token whatever follows. So each
    chunk can be scanned as a text of its own.
    """
    fields = i64_at(context)
    rest = fields[LENGTH] - fields[POSITION]
    size = min(rest, fields[STAGE_SIZE])
    copy(fields[STAGE], fields[TEXT] + fields[POSITION], size)
    fill(fields[STAGE] + size, 0, PADDING)
    _make_maps(context, size, cased, lines)
    if size < rest:
        size = _last_boundary(context, size)
    fields[CHUNK] = size
    fields[POSITION] += size
    return size


@kernel
def _make_maps(context, size, cased, lines):
    fields = i64_at(context)
    foreign = _classify_ascii(context, size, cased, lines)
    if foreign or fields[HAS_FOREIGN]:
        words = max((size >> 6) + 2, fields[HAS_FOREIGN])  # also what an earlier, longer chunk left
        fill(fields[MAPS] + LETTER * fields[MAP_WORDS] * 8, 0, words << 3)
        fill(fields[MAPS] + MARK * fields[MAP_WORDS] * 8, 0, words << 3)
        fill(fields[MAPS] + INSIDE * fields[MAP_WORDS] * 8, 0, words << 3)
    fields[HAS_FOREIGN] = (size >> 6) + 2 if foreign else i64(0)
    if foreign:
        _classify_foreign(context, size)


@kernel
def _classify_ascii(context, size, cased, lines):
    """Maps of the ASCII characters; whether there are others, which are marked in STARTS for the next step."""
    fields = i64_at(context)
    white, number = map_of(context, WHITE), map_of(context, NUMBER)
    upper, lower, letters = map_of(context, UPPER), map_of(context, LOWER), map_of(context, ANY_LETTER)
    space, apostrophe, foreign = map_of(context, SPACE), map_of(context, APOSTROPHE), map_of(context, STARTS)
    any_foreign = u64(0)
    line_ends = map_of(context, LINE_END)
    zeros = any_apostrophe = any_line_end = u64(0)
    last = size >> 6
    for word in range(last + 2):  # up to two words of padding, which have no class
        masks = byte_masks(fields[STAGE] + (word << 6))
        foreign[word] = masks[0]
        any_foreign |= masks[0]
        if cased:
            upper[word], lower[word] = masks[1], masks[2]
        letters[word] = masks[1] | masks[2]
        number[word] = masks[3]
        white[word] = masks[4]
        space[word] = masks[5]
        apostrophe[word] = masks[6]
        any_apostrophe |= masks[6]
        if lines:
            line_ends[word] = masks[8]
            any_line_end |= masks[8]
        if word < last:
            zeros |= masks[7]
        elif word == last:
            zeros |= masks[7] & ~(ALL << u64(size & 63))
    fields[HAS_ZERO], fields[HAS_APOSTROPHE] = i64(zeros != u64(0)), i64(any_apostrophe != u64(0))
    fields[HAS_LINE_END] = i64(any_line_end != u64(0))
    return any_foreign != u64(0)


@kernel
def _classify_foreign(context, size):
    """Add the characters beyond ASCII to the maps."""
    fields = i64_at(context)
    inside, letters, foreign = map_of(context, INSIDE), map_of(context, ANY_LETTER), map_of(context, STARTS)
    end = fields[STAGE] + size
    for word in range((size >> 6) + 1):
        pending = foreign[word]
        while pending != u64(0):
            place = trailing_zeros(pending)
            found = character_class(context, fields[STAGE] + (word << 6) + place, end)
            kind, length = found & 255, found >> 8
            if length == 1 and (
                fields[STAGE] + (word << 6) + place + 4 <= end or fields[POSITION] + size == fields[LENGTH]
            ):
                fields[INVALID] = 1
            bits = (ONE << u64(length)) - ONE
            bits_here = bits << u64(place)
            bits_next = (bits >> u64(1)) >> u64(63 - place)
            head = ONE << u64(place)
            target = map_of(context, kind)
            target[word] |= bits_here
            inside[word] |= bits_here & ~head
            if kind >= UPPER and kind <= LETTER:
                letters[word] |= bits_here
            if bits_next != u64(0):
                target[word + 1] |= bits_next
                inside[word + 1] |= bits_next
                foreign[word + 1] &= ~bits_next
                if kind >= UPPER and kind <= LETTER:
                    letters[word + 1] |= bits_next
            pending &= ~bits_here


@kernel
def character_class(context, address, end):
    """Class and number of bytes (class | bytes << 8) of the character that is not ASCII at an address."""
    fields = i64_at(context)
    code = _decode(address, end)
    if code < 0:
        return _BEGINS_NO_CHARACTER
    page = i64(u16_at(fields[CLASS_INDEX])[code >> 8])
    kind = i64(u8_at(fields[CLASS_PAGES])[(page << 8) + (code & 255)])
    length = 2 if code < 0x800 else (3 if code < 0x10000 else 4)
    return kind | (length << 8)


@kernel
def _decode(address, end):
    """The code point at an address, or -1 where the bytes are not well-formed UTF-8 (Unicode 3.9, table 3-7)."""
    text = u8_at(address)
    first = i64(text[0])
    if first < 0xC2 or first > 0xF4:
        return i64(-1)
    length = 2 if first < 0xE0 else (3 if first < 0xF0 else 4)
    if address + length > end:
        return i64(-1)
    code = first & (0x7F >> length)
    for place in range(1, length):
        byte = i64(text[place])
        if byte & 0xC0 != 0x80:
            return i64(-1)
        code = (code << 6) | (byte & 0x3F)
    if length == 3 and (code < 0x800 or (code >= 0xD800 and code < 0xE000)):
        return i64(-1)
    if length == 4 and (code < 0x10000 or code > 0x10FFFF):
        return i64(-1)
    return code


@kernel
def _last_boundary(context, size):
    """The last end of a letter or number that nothing follows which could continue its pre-token; 0 if none is.

    The last bytes of the stage may be part of a character, so no boundary is looked for in front of them.
    """
    letters, number, mark = map_of(context, ANY_LETTER), map_of(context, NUMBER), map_of(context, MARK)
    apostrophe = map_of(context, APOSTROPHE)
    last = size - 5
    if last < 0:
        return i64(0)
    word = last >> 6
    allowed = ALL >> u64(63 - (last & 63))
    while word >= 0:
        continues = letters[word] | number[word] | apostrophe[word] | mark[word]
        after = letters[word + 1] | number[word + 1] | apostrophe[word + 1] | mark[word + 1]
        followed = (continues >> u64(1)) | (after << u64(63))
        ends = (letters[word] | number[word]) & ~followed & allowed
        if ends != u64(0):
            return (word << 6) + 64 - leading_zeros(ends)
        allowed = ALL
        word -= 1
    return i64(0)
