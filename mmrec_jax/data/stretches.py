"""The encoding of a corpus, divided into stretches among the processes that share the cache.

Each process reads the entire text, and encodes the stretches that no other one has encoded or is
encoding. It holds the lock of a stretch while it works on it, and a lock ends with its process, so
the others make up for one that is killed, and a later command goes on from what it finds.

<corpus>.encoded/
    tokenizer.json  00000.lock  00000.json (counts)  00000.tokens  00001.lock ...
"""

import contextlib
import itertools
import json
import operator
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np

from mmrec_jax.data.corpus import Corpus, Piece, split_pieces
from mmrec_jax.data.encoding import Encode, blocks
from mmrec_jax.data.scan import Scan
from mmrec_jax.data.token_files import TokenCounts
from mmrec_jax.files import replacing, write_text

SHORTEST = 2**22  # characters, but for the last stretch of a split
MOST = 1000  # stretches, approximately


class Stretch(NamedTuple):
    """Some blocks that follow each other in a split of a part of the corpus."""

    number: int
    part: int
    split: str


def stretches(corpus: Corpus, scan: Scan) -> Iterator[tuple[Stretch, list[Piece]]]:
    """All blocks of a corpus, in order, each with its stretch."""
    long_enough = max(SHORTEST, sum(scan.characters) // MOST)
    number = 0
    for part, (pieces_of, characters) in enumerate(zip(corpus.parts, scan.characters, strict=True)):
        pieces = split_pieces(pieces_of, characters)
        for split, of_split in itertools.groupby(pieces, key=operator.itemgetter(0)):
            size = 0
            for block in blocks(piece for _, piece in of_split):
                if size >= long_enough:
                    number, size = number + 1, 0
                yield Stretch(number, part, split), block
                size += sum(len(piece.text) for piece in block)
            number += 1


class SharedEncoding:
    """The folder of a corpus that is being encoded."""

    def __init__(self, folder: Path, result: Path, dtype: np.dtype):
        """`result`: a folder that exists when everything is done, and this one may be gone."""
        self._folder, self._result, self._dtype = folder, result, dtype
        self.num_bytes = 0  # of text that this process has encoded

    def tokens(self, stretch: Stretch) -> np.ndarray:
        """The tokens of a stretch that is done, in a file."""
        path = self._path(stretch, "tokens")
        if not path.stat().st_size:
            return np.zeros(0, self._dtype)  # which cannot be mapped
        return np.memmap(path, self._dtype, mode="r")

    def counts(self, stretch: Stretch) -> TokenCounts:
        """The counts of a stretch that is done."""
        return TokenCounts(**json.loads(self._path(stretch, "json").read_text()))

    def encode(
        self,
        corpus: Iterable[tuple[Stretch, list[Piece]]],
        encode: Encode,
        advance: Callable[[int], None],
    ) -> list[Stretch]:
        """Encodes the stretches that are not done and that no other process is working on.

        Args:
            corpus: all blocks, as `stretches` gives them.
            encode: encodes blocks.
            advance: called with numbers of characters that are done, here or elsewhere.

        Returns:
            all stretches, in order.

        Raises:
            OSError: a file cannot be written; the stretches that are done remain.
        """
        found: list[Stretch] = []
        held: dict[Stretch, filelock.BaseFileLock] = {}

        def claimed() -> Iterator[tuple[Stretch, list[Piece]]]:
            for stretch, group in itertools.groupby(corpus, key=operator.itemgetter(0)):
                found.append(stretch)
                if lock := self._claim(stretch):
                    held[stretch] = lock
                    yield from group
                else:
                    for _, block in group:
                        advance(sum(len(piece.text) for piece in block))

        try:
            encoded = itertools.groupby(encode(claimed()), key=operator.itemgetter(0))
            for stretch, group in encoded:
                counts = TokenCounts()
                with replacing(self._path(stretch, "tokens")) as file:
                    for _, block in group:
                        file.write(block.tokens.astype(self._dtype).tobytes())
                        counts = counts.plus(block.counts)
                        advance(block.characters)
                    write_text(self._path(stretch, "json"), json.dumps(counts._asdict()))
                self.num_bytes += counts.num_bytes
                held.pop(stretch).release()
        finally:
            for lock in held.values():
                lock.release()
        return found

    def wait(self, found: Iterable[Stretch]) -> bool:
        """Waits for stretches that other processes work on; whether all are done then."""
        for stretch in found:
            if not self._is_done(stretch):
                # Free when the stretch is done or its process is gone; missing when all is done.
                with contextlib.suppress(FileNotFoundError), self._lock(stretch):
                    pass
            if not self._is_done(stretch):
                return False
        return True

    def _claim(self, stretch: Stretch) -> filelock.BaseFileLock | None:
        if self._is_done(stretch):
            return None
        lock = self._lock(stretch)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return None
        except FileNotFoundError:
            if not self._result.exists():
                raise
            return None
        if self._is_done(stretch):  # by the process that has just released the lock
            lock.release()
            return None
        return lock

    def _is_done(self, stretch: Stretch) -> bool:
        return self._path(stretch, "tokens").exists() or self._result.exists()

    def _lock(self, stretch: Stretch) -> filelock.BaseFileLock:
        return filelock.FileLock(self._path(stretch, "lock"))

    def _path(self, stretch: Stretch, suffix: str) -> Path:
        return self._folder / f"{stretch.number:05d}.{suffix}"
