"""What learn.py works on: the fields of its context, an array of int64 that holds addresses and numbers.

An address is of memory that merges.py owns. The kernels ask for more of it by what they return.
"""

# fmt: off
(
    TEXT,            # address: the 256 bytes, then the words, a byte that counts for nothing after each
    SYMBOLS,         # address of int32 for each place of TEXT: the token at its first and last place; see below
    WEIGHTS,         # address of int64 for each place: how often the word occurs
    LENGTH,          # of the text, the symbols and the weights
    WORD_ENDS,       # address of int64: where each word ends
    WORD_COUNTS,     # address of int64
    WORDS,           # their number
    TOKENS,          # address of records (HEAD, PLACE, SIZE)
    NUM_TOKENS,
    WANTED_TOKENS,   # when there are so many, it is done
    MERGES,          # address of int32 pairs: the two halves of token 256, 257, ...
    THRESHOLD,       # pairs that occur less often are not looked at
    PAIRS,           # address of records (KEY, COUNT, FIRST, OCCURRENCES)
    NUM_PAIRS,
    SLOTS,           # address of (key, number of the pair), a hash table with open addressing
    SLOT_BITS,       # the table has 2^SLOT_BITS slots
    OCCURRENCES_AT,  # address of int32: the places of each pair, in ascending order
    NUM_OCCURRENCES,
    MAX_OCCURRENCES,
    HEAP,            # address of (count, number of the pair), the pair to merge next on top
    HEAP_SIZE,
    MAX_HEAP,
    LEFT_TALLIES,    # address of a record (WEIGHT, TIMES, PAIR) for each token: as left neighbour of the new one
    RIGHT_TALLIES,
    LEFT_SEEN,       # address of int32: the tokens that have such a tally
    RIGHT_SEEN,
    CURSOR,          # where in the text to go on
    BUDGET,          # how many occurrences to merge before Python gets its turn
    NEEDED,          # how much room was missing
) = range(29)
# fmt: on
FIELDS = 29

# Symbols that are no tokens: around words; inside a token of three bytes or more.
SEPARATOR, INSIDE = -1, -2

# Words of 8 bytes in the records of tokens, pairs and tallies. HEAD: the first 8 bytes, to compare tokens by.
HEAD, PLACE, SIZE, TOKEN_RECORD = 0, 1, 2, 3
KEY, COUNT, FIRST, OCCURRENCES, PAIR_RECORD = 0, 1, 2, 3, 4
WEIGHT, TIMES, PAIR, TALLY_RECORD = 0, 1, 2, 3

# What a kernel returns.
DONE, GO_ON, NEED_PAIRS, NEED_OCCURRENCES, NEED_HEAP = 0, 1, 2, 3, 4
