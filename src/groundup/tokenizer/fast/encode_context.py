"""The fields of a context that encoding adds to those of the front (context.py), and the layout of its tables.

A *value* is what a pre-token encodes to, in 64 bits: four lanes of 16 bits or, for ids that need more, two of 32. Its
ids stand in the lowest lanes and all other lanes are full of ones. With ones in the lowest lane, the rest is the place
in SPILL where the number of the ids and the ids are; and a value all of ones is a pre-token so long that it is merged
when its ids are written (or one that found no place in the tables, or has no ids at all).
"""

from groundup.tokenizer.fast.context import FRONT_FIELDS

ID_BITS = 20  # of an id in the table of pairs

# Where ids go: numbers of LANE_BITS, 16 or 32; how many fit and how many are there.
OUTPUT, OUTPUT_SIZE, OUTPUT_COUNT, LANE_BITS = range(FRONT_FIELDS, FRONT_FIELDS + 4)
# Pre-tokens of up to 8 bytes, the frequent ones: (key, value) at the hash of the key, one for each hash.
QUICK, QUICK_SHIFT = range(FRONT_FIELDS + 4, FRONT_FIELDS + 6)
# Pre-tokens of up to 15 bytes, all of them: lines of two (low, high, value, unused), high having the length on top.
LINES, NUM_LINES, LINES_USED = range(FRONT_FIELDS + 6, FRONT_FIELDS + 9)
# Longer ones: (hash, length, place in LONG_TEXT, value).
LONGS, NUM_LONGS, LONGS_USED = range(FRONT_FIELDS + 9, FRONT_FIELDS + 12)
LONG_TEXT, LONG_TEXT_SIZE, LONG_TEXT_USED = range(FRONT_FIELDS + 12, FRONT_FIELDS + 15)
# Ids of pre-tokens with more of them than a value holds: uint32.
SPILL, SPILL_SIZE, SPILL_USED = range(FRONT_FIELDS + 15, FRONT_FIELDS + 18)
# A batch of pre-tokens: their values, the numbers of those not found, the keys and lines of these.
VALUES, MISSES, PROBES = range(FRONT_FIELDS + 18, FRONT_FIELDS + 21)
# The vocabulary: id of each byte (uint32); rank of each pair of bytes (uint32); pairs of ids as one number of 64 bits,
# left << 44 | right << 24 | rank, at the hash of the pair; id of each rank (uint32).
BYTE_IDS, BYTE_PAIRS, PAIRS, PAIRS_SHIFT, RANK_IDS = range(FRONT_FIELDS + 21, FRONT_FIELDS + 26)
# The tokens by their bytes, for vocabularies in which a pre-token that is a token stays whole (NUM_TOKENS is 0 for
# others): id + 1 at the hash of the bytes (uint32); token number id has the bytes from OFFSETS[id] on (int64).
NUM_TOKENS, TOKEN_TABLE, TOKEN_TABLE_SIZE, OFFSETS, TOKEN_TEXT = range(FRONT_FIELDS + 26, FRONT_FIELDS + 31)
# Room to merge a pre-token in: ids and ranks, links, heap; for pre-tokens of so many bytes.
SCRATCH, SCRATCH_SIZE = range(FRONT_FIELDS + 31, FRONT_FIELDS + 33)
# How many pre-tokens of the present chunk have been written, where a call that ran out of room goes on.
WORDS_DONE = FRONT_FIELDS + 33
# Texts for one call: addresses, lengths, ends in the output (int64 each), how many, and how many are done.
TEXTS, LENGTHS, ENDS, NUM_TEXTS, TEXTS_DONE = range(FRONT_FIELDS + 34, FRONT_FIELDS + 39)
# What Python lists are made of: the addresses of the ids as int objects, and of None; where a string's length goes.
OBJECTS, NONE, STRING_LENGTH = range(FRONT_FIELDS + 39, FRONT_FIELDS + 42)
# The address of the kernel that encodes a text, and what it said last.
ENCODE_TEXT, STATUS = range(FRONT_FIELDS + 42, FRONT_FIELDS + 44)
# Whether there are bytes without a token (NO_ID in BYTE_IDS), which disappear from text.
LACKS_BYTES = FRONT_FIELDS + 44
# Of a group of missed pre-tokens, those that are not in their first line (int32).
UNRESOLVED = FRONT_FIELDS + 45
# A table that became too small, and how many lines or rows it has.
OLD_TABLE, OLD_SIZE = range(FRONT_FIELDS + 46, FRONT_FIELDS + 48)
# Whether the context is at work on a string (encode_string), which whoever else comes by has to respect.
BUSY = FRONT_FIELDS + 48
ENCODE_FIELDS = FRONT_FIELDS + 49

LONGEST_STRING = 1 << 16  # bytes: for a longer text other threads should not have to wait

# Answers of kernels beside those of the front: which table is full.
NEEDS_LINES, NEEDS_LONGS, NEEDS_LONG_TEXT, NEEDS_SPILL = range(32, 36)

MOST_PROBES = 64  # places of a table that are looked at for one pre-token
BATCH = 1024  # pre-tokens that are looked up together
GROUP = 256  # of those that the quick table misses
NO_RANK, NO_ID = 0xFFFFFF, 0xFFFFFFFF
NO_PAIR = 0xFFFF_FFFF_FFFF_FFFF
LONGEST_SCANNED = 96  # bytes: a longer pre-token is merged with a heap
LONGEST_KEPT = 256  # bytes: a longer pre-token is encoded anew each time
SCRATCH_PER_BYTE = 32
