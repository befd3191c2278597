"""The most likely token of a row of logits, found in pieces that threads share out.

    logits   | piece 0 | piece 1 | piece 2 | piece 3 |    each one's first largest logit; NOT_A_NUMBER where a NaN is
                 17       12300     31007     40961   ->  the first of the largest of these

The same token as of `groundup.inference.sampling.most_likely`, at the place where the logits still are in the caches.
"""

import numpy as np

from groundup.inference.decode.operations import PIECES
from groundup.inference.decode.rows import bits, largest_of, row_at
from groundup.inference.decode.team import compiled

CHUNK = 512
NOT_A_NUMBER = -1
_SIZE, _INFINITE = 0x7FFFFFFF, 0x7F800000  # of a float32's bits: all but the sign, and infinity's


@compiled
def has_nan(x):
    most = np.uint32(0)
    for i in range(x.size):
        most = max(most, bits(x[i]) & np.uint32(_SIZE))
    return most > np.uint32(_INFINITE)


@compiled
def first_largest(x):
    """The lowest place of the largest number; NOT_A_NUMBER where there is a NaN."""
    place, most = 0, np.float32(-np.inf)
    for start in range(0, x.size, CHUNK):
        chunk = x[start : start + CHUNK]
        if has_nan(chunk):
            return NOT_A_NUMBER
        here = largest_of(chunk, np.float32(-np.inf))
        if here > most:
            place, most = start, here
    while x[place] != most:
        place += 1
    return place


@compiled
def search_piece(op, part, found):
    """Part `part` of the search: a piece of a row, whose answer goes to found[row, piece]."""
    row, piece = part // PIECES, part % PIECES
    size = (op.width + PIECES - 1) // PIECES
    start, end = min(op.width, piece * size), min(op.width, (piece + 1) * size)
    place = first_largest(row_at(op.source, op.source_width, row)[start:end]) if start < end else 0
    found[row, piece] = NOT_A_NUMBER if place == NOT_A_NUMBER else min(start, op.width - 1) + place


@compiled
def choose_pieces(op, rows, found):
    """Of every row the answer of all pieces, into its first; NOT_A_NUMBER, too, where the largest is infinite."""
    for row in range(rows):
        logits, best = row_at(op.source, op.source_width, row), found[row, 0]
        for piece in range(PIECES):
            place = found[row, piece]
            if place == NOT_A_NUMBER or best == NOT_A_NUMBER:
                best = NOT_A_NUMBER
            elif logits[place] > logits[best]:
                best = place
        if best != NOT_A_NUMBER and bits(logits[best]) & np.uint32(_SIZE) >= np.uint32(_INFINITE):
            best = NOT_A_NUMBER
        found[row, 0] = best
