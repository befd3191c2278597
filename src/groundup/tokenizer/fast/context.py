"""What the scanners share with Python: the fields of a context, an int64 array whose address a kernel is given.

Fields are numbers or addresses of other arrays. The *front* (this file) turns text into pre-tokens, a chunk at a
time; what uses the pre-tokens (encoding, counting) appends its own fields from `FRONT_FIELDS` on.
"""

# What to read: UTF-8 bytes, and how far they have been read.
TEXT, LENGTH, POSITION = range(3)
# The present chunk, copied to the stage so that reading past its end is safe, and its pre-tokens: number j has the
# bytes PLACES[j] to PLACES[j + 1] of the stage (int32). HAS_FOREIGN is the number of words of the maps that characters
# beyond ASCII may have marked, 0 for none.
STAGE, STAGE_SIZE, CHUNK, PLACES, WORDS, HAS_ZERO, HAS_FOREIGN = range(3, 10)
# Bit maps of the stage, MAP_WORDS words of 64 bits each, one after the other in the order of the classes below. The
# last words of each are never written, so that what is before the first word of the next one is zero.
MAPS, MAP_WORDS = range(10, 12)
# The Unicode table: class of a code point = PAGES[256 * INDEX[code >> 8] + (code & 255)].
CLASS_INDEX, CLASS_PAGES = range(12, 14)
# The address of the scanner's kernel, and what distinguishes patterns that one scanner serves.
SCANNER, MAX_DIGITS, END_TAKES_SPACE = range(14, 17)
# Whether the text had bytes that are not valid UTF-8, and the chunk has apostrophes or line ends.
INVALID, HAS_APOSTROPHE, HAS_LINE_END = range(17, 20)
# A block: texts and, between them, special tokens. TEXT is its address and BLOCK_LENGTH its bytes; LENGTH is then where
# the present text ends in it, before the special token with the id FOUND (-1 for none), and NEXT_TEXT where the next
# one begins.
BLOCK_LENGTH, NEXT_TEXT, FOUND = range(20, 23)
# The special tokens, the longest first: (place in SPECIAL_BYTES, size, id) of each, and the bytes that they begin with
# (int64 all).
SPECIALS, NUM_SPECIALS, SPECIAL_BYTES, FIRST_BYTES, NUM_FIRST_BYTES = range(23, 28)
# Whether any begins with two bytes, at first | second << 8 (uint8).
BEGINNINGS = 28
FRONT_FIELDS = 29

# Classes of characters, as in the Unicode table, and the maps of that number.
OTHER, WHITE, NUMBER, UPPER, LOWER, LETTER, MARK = range(7)
# Maps that are not classes: bytes inside a character, the ASCII space, the apostrophe, any letter, pre-token starts.
INSIDE, SPACE, APOSTROPHE, ANY_LETTER, STARTS = range(7, 12)
# Line ends (\r and \n), what belongs to the characters before it whatever its class (line ends behind signs; see the
# scanners), white space up to the last line end of its run, and characters that take the letters behind them along.
# Only where a scanner wants them.
LINE_END, TAKEN, BEFORE_LINE_END, PREFIX = range(12, 16)
NUM_MAPS = 16

PADDING = 128  # bytes of the stage behind its end that may be read

# Answers of kernels: done, or what must grow before they are called again.
DONE, NEEDS_STAGE, NEEDS_OUTPUT, NEEDS_SCRATCH = range(4)
