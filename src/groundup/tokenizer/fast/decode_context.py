"""The fields of a context for decoding: an int64 array, as for the other kernels."""

# Ids (numbers of ID_BYTES bytes each), and how many they are.
IDS, ID_BYTES, NUM_IDS = range(3)
# Tokens: 16 bytes from the begin of each, whatever follows a shorter one; length of each (uint8), NOT_SHORT where it is
# more than 16 or an id has no token; how many; and where all bytes of each are: TOKEN_TEXT from OFFSETS[id] on (int64).
# Rows and lengths have one more, which stands for every number that is no id.
ROWS, TOKEN_LENGTHS, VOCAB_SIZE, OFFSETS, TOKEN_TEXT = range(3, 8)
# Where the bytes go, and how many there are.
OUTPUT, OUTPUT_SIZE = range(8, 10)
# The address of Python's None.
NONE = 10
DECODE_FIELDS = 11

# Ids at a time.
BATCH = 64
ROW_BYTES = 16
# As if a length, so that a batch never takes more than BATCH times as much.
NOT_SHORT = 32
