"""The fields of a context for decoding: an int64 array, as for the other kernels."""

# Ids (numbers of ID_BYTES bytes each), and how many they are.
IDS, ID_BYTES, NUM_IDS = range(3)
# Tokens: 16 bytes from the begin of each, whatever follows a shorter one; length of each (uint8), 0 where it is more
# than 16 or an id has no token; how many; and where all bytes of each are: TOKEN_TEXT from OFFSETS[id] on (int64).
ROWS, TOKEN_LENGTHS, VOCAB_SIZE, OFFSETS, TOKEN_TEXT = range(3, 8)
# Where the bytes go, and how many there are.
OUTPUT, OUTPUT_SIZE = range(8, 10)
# The address of Python's None.
NONE = 10
# Behind the fields, and a place for one more: room for a batch of ids as uint32.
BATCH_IDS = 12
BATCH = 64
DECODE_FIELDS = BATCH_IDS + BATCH // 2

ROW_BYTES = 16
