"""What count.py works on: the fields of its context behind those of the front (see context.py)."""

from groundup.tokenizer.fast.context import FRONT_FIELDS

# fmt: off
(
    MISSES,          # address of the words of the chunk that are yet to be counted: start | size << 32
    NUM_MISSES,
    NEXT_MISS,
    SHORT,           # address of (key, count): words of at most 8 bytes that do not end in a zero
    SHORT_BITS,      # a table has 2^BITS slots
    NUM_SHORT,
    LONG,            # address of (low, high, count, unused): the other words of at most 15 bytes
    LONG_BITS,
    NUM_LONG,
    HUGE,            # address of (hash, place in ARENA, size, count): longer words
    HUGE_BITS,
    NUM_HUGE,
    ARENA,           # address of the bytes of the longer words
    ARENA_SIZE,
    ARENA_USED,
    WORD_BYTES,      # bytes of all words in the tables
    OLD_TABLE,       # address of a table that became too small
    OLD_BITS,
    WORD_TEXT,       # words with counts, to add or to list: see merges.Words
    WORD_ENDS,
    WORD_COUNTS,
    WORDS_LISTED,
    NEXT_WORD,       # where in them to go on
    NEEDED,          # bytes of ARENA that were missing
) = range(FRONT_FIELDS, FRONT_FIELDS + 24)
# fmt: on
COUNT_FIELDS = FRONT_FIELDS + 24

BATCH = 128  # words that are looked up together, so that the memory of one is fetched while others are counted
SHORT_SLOT, LONG_SLOT, HUGE_SLOT = 2, 4, 4  # 64-bit numbers in a slot

# Answers of kernels beside those of the front: which table is full.
DONE, NEEDS_SHORT, NEEDS_LONG, NEEDS_HUGE, NEEDS_ARENA = 0, 16, 17, 18, 19
