"""Compressed files (.gz, .xz, .zst), read in constant memory."""

import contextlib
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePath

import zstandard

from mmrec_jax.errors import UserError

BLOCK = 2**20  # compressed bytes per read
SUFFIXES = (".gz", ".xz", ".zst")
_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, tarfile.TarError)


def decompressed(file: io.BufferedIOBase, name: PurePath) -> io.BufferedIOBase:
    """The content of a file, which is decompressed if the suffix of its name says so."""
    match name.suffix:
        case ".gz":
            return gzip.open(file)
        case ".xz":
            return lzma.open(file)
        case ".zst":
            return io.BufferedReader(_ZstdFile(file))
    return file


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns what goes wrong when a file is read into a UserError with the name of the file."""
    try:
        yield
    except _ERRORS as error:
        raise UserError(f"cannot read {where}: {getattr(error, 'strerror', 0) or error}") from error


class _ZstdFile(io.RawIOBase):
    """Reads zstd frames. The library's own reader takes a truncated file for a complete one."""

    def __init__(self, file: io.BufferedIOBase):
        self._file, self._frame, self._data = file, None, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._data:
            rest = self._frame.unused_data if self._frame else b""
            compressed = rest or self._file.read(BLOCK)
            if not compressed:
                if self._frame and not self._frame.eof:
                    raise EOFError("the compressed file is truncated")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._data = self._frame.decompress(compressed)
        count = min(len(buffer), len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
