"""Tokens on disk: ArrayRecord files that can be read from any position.

A record is the number of documents that began before it (int64), then its tokens (uint16, or uint32
for a larger vocabulary). All records but the last have RECORD tokens.
"""

import errno
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource

from mmrec_jax import checksums
from mmrec_jax.errors import UserError

RECORD = 8192  # tokens per record
FILE = 2**27  # most tokens per file
_OPTIONS = "group_size:1,uncompressed"  # one record per group: windows are read in any order


class TokenCounts(NamedTuple):
    """What is known about a split without reading it."""

    tokens: int = 0
    documents: int = 0
    num_bytes: int = 0  # in UTF-8
    unknown: int = 0  # tokens of characters outside the vocabulary
    num_words: int = 0  # separated by white space or by the end of a block
    num_lines: int = 0  # line ends

    def plus(self, other: "TokenCounts") -> "TokenCounts":
        """The counts of two texts together."""
        return TokenCounts(*map(sum, zip(self, other, strict=True)))


class TokenWriter:
    """Writes the tokens of a split, in order, into `<stem>-00000.array_record` and so on."""

    def __init__(self, stem: Path, dtype: np.dtype, document: int):
        """`document`: id of the token that starts a document."""
        self._stem, self._dtype, self._document = stem, dtype, document
        self._left = np.zeros(0, self._dtype)
        self._documents = self._written = 0
        self._writer = None
        self._digest = hashlib.blake2b(digest_size=16)
        self.paths: list[Path] = []

    def write(self, tokens: np.ndarray) -> None:
        tokens = np.concatenate([self._left, tokens.astype(self._dtype)])
        whole = len(tokens) // RECORD * RECORD
        for record in tokens[:whole].reshape(-1, RECORD):
            self._record(record)
        self._left = tokens[whole:]

    def close(self) -> dict:
        """Writes the remaining tokens and returns their digest and a list of the files."""
        if len(self._left) or self._writer is None:
            self._record(self._left)
        self._close_file()
        files = []
        for path in self.paths:
            stat = path.stat()
            file = {"name": path.name, "bytes": stat.st_size, "changed": stat.st_mtime_ns}
            files.append({**file, "checksum": checksums.of_file(path)})
        return {"digest": self._digest.hexdigest(), "files": files}

    def _close_file(self) -> None:
        try:
            self._writer.close()
        except RuntimeError as error:  # only the message says which error it is
            number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
            raise OSError(number, str(error)) from error

    def _record(self, tokens: np.ndarray) -> None:
        if self._written % FILE == 0:
            if self._written:
                self._close_file()
            path = Path(f"{self._stem}-{len(self.paths):05d}.array_record")
            self.paths.append(path)
            self._writer = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
        data = tokens.tobytes()
        self._writer.write(np.int64(self._documents).tobytes() + data)
        self._digest.update(data)
        self._documents += int(np.count_nonzero(tokens == self._document))
        self._written += len(tokens)


class TokenReader:
    """Reads the tokens of a split from any position, in any thread."""

    def __init__(self, paths: list[Path], dtype: np.dtype, document: int):
        """`paths`, `dtype` and `document` are those of the `TokenWriter`."""
        self._paths = paths
        self._records = ArrayRecordDataSource([str(path) for path in paths])
        self._dtype, self._document = dtype, document

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `start` to `stop` - 1 and their document numbers, both int32 [tokens].

        Raises:
            UserError: the files cannot be read.
        """
        first = start // RECORD
        try:
            records = [self._records[i] for i in range(first, max(-(-stop // RECORD), first + 1))]
            tokens = np.concatenate([np.frombuffer(r, self._dtype, offset=8) for r in records])
            before = int(np.frombuffer(records[0], np.int64, count=1)[0])
        except Exception as error:  # ArrayRecord raises exceptions of many types
            raise UserError(
                f"the tokens in {self._paths[0].parent} cannot be read: {error}; run the same "
                "command again to rebuild damaged files"
            ) from error
        documents = before + np.cumsum(tokens == self._document) - 1
        here = slice(start - first * RECORD, stop - first * RECORD)
        return tokens[here].astype(np.int32), documents[here].astype(np.int32)
