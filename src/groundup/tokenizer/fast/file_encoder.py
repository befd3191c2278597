"""From a file to its ids: read and encoded a block at a time, so that text and ids stay in the processor's caches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from groundup.tokenizer.fast.encoder import FastEncoder
from groundup.tokenizer.fast.front import BLOCK_PADDING, Specials
from groundup.tokenizer.ranges import Cutter, FileRange

STEP = 1 << 20  # bytes of a block
_BYTES_PER_ID = 2  # or more, in nearly all text


class FileEncoder:
    """Encodes files by a vocabulary and a published pattern. What is not UTF-8 is read as U+FFFD."""

    def __init__(self, encoder: FastEncoder, pattern: str, special_tokens: Mapping[str, int]) -> None:
        self._encoder = encoder
        self._cutter = Cutter(pattern, special_tokens)
        self._specials = Specials.of({token.encode(): token_id for token, token_id in special_tokens.items()})

    def encode(self, path: Path, workers: int) -> np.ndarray:
        """The ids of a file, by `workers` threads. OSError when it cannot be read."""
        size = path.stat().st_size
        if size < STEP:  # or not a size at all, as of the system's own files
            return self._encode_data(path.read_bytes()).copy()
        workers = max(1, min(workers, size // STEP))
        ids = _Growing(size // _BYTES_PER_ID + 1024, self._encoder.output_type)
        desks: SimpleQueue[_Desk] = SimpleQueue()
        for _ in range(2 * workers + 1):  # of blocks that are done and of those that are being encoded
            desks.put(_Desk(self._encoder.output_type))

        def work(part: FileRange) -> _Encoded:
            desk = desks.get()
            part.fill(desk.room(part.size))
            return self._encode_block(desk, part.size), desk

        parts = (FileRange(path, (0, *part)) for part in self._cutter.ranges(path, STEP))
        for found, desk in _in_order(work, parts, workers):
            ids.append(found)
            desks.put(desk)
        return ids.finish()

    def _encode_block(self, desk: "_Desk", size: int) -> np.ndarray:
        ids, is_valid = self._encoder.encode_block(desk.block, size, self._specials, desk.ids)
        if is_valid:
            return ids
        return self._encode_data(desk.block[:size].tobytes())

    def _encode_data(self, data: bytes) -> np.ndarray:
        valid = data.decode("utf-8", "replace").encode()
        block = np.frombuffer(valid + bytes(BLOCK_PADDING), np.uint8)
        room = np.empty(len(valid) // _BYTES_PER_ID + 1024, self._encoder.output_type)
        return self._encoder.encode_block(block, len(valid), self._specials, room)[0]


class _Desk:
    """Room for a block and for its ids."""

    def __init__(self, id_type: type) -> None:
        self.block = np.empty(STEP + STEP // 8 + BLOCK_PADDING, np.uint8)
        self.ids = np.empty(STEP // _BYTES_PER_ID, id_type)

    def room(self, size: int) -> np.ndarray:
        """An array for `size` bytes."""
        if self.block.size < size + BLOCK_PADDING:
            self.block = np.empty(size + BLOCK_PADDING, np.uint8)
        return self.block


_Encoded = tuple[np.ndarray, _Desk]


class _Growing:
    """An array that is made longer. What was never written to takes no memory, where the system does it so."""

    def __init__(self, size: int, id_type: type) -> None:
        self._array, self._count = np.empty(size, id_type), 0

    def append(self, ids: np.ndarray) -> None:
        """Put these behind those that are there."""
        end = self._count + ids.size
        if end > self._array.size:
            larger = np.empty(end + end // 2, self._array.dtype)
            larger[: self._count] = self._array[: self._count]
            self._array = larger
        self._array[self._count : end] = ids
        self._count = end

    def finish(self) -> np.ndarray:
        """All of them; what is left of the room goes back to the system."""
        self._array.resize(self._count, refcheck=False)
        return self._array


def _in_order(work: Callable[[FileRange], _Encoded], parts: Iterable[FileRange], workers: int) -> Iterator[_Encoded]:
    """The results of some threads' work in the order of the parts, with no more than 2 * workers + 1 waiting."""
    if workers == 1:
        yield from map(work, parts)
        return
    waiting: deque[Future[_Encoded]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for part in parts:
                waiting.append(pool.submit(work, part))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
