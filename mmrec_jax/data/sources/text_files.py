"""Files of text or JSON lines, plain or compressed (.gz, .zst), read in constant memory."""

import codecs
import functools
import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard

from mmrec_jax.config import DataConfig
from mmrec_jax.data.corpus import Corpus, Part, Piece, split_shares
from mmrec_jax.errors import UserError

BLOCK = 2**20  # bytes per read
LONGEST_LINE = 2**28  # most bytes of a JSON line


def open_corpus(config: DataConfig) -> Corpus:
    """The files of `data.path`, with one document per file ("text") or per line ("jsonl").

    Raises:
        UserError: no file matches.
    """
    files = _matching_files(config.path, config.source)

    def pieces() -> Iterator[Piece]:
        for path in files:
            if config.source == "text":
                yield from read_text(path)
            else:
                yield from read_jsonl(path, config.field)

    return Corpus((Part(pieces, split_shares(config)),), tuple(files))


def _matching_files(pattern: str, source: str) -> list[Path]:
    """The files of a file name, a glob, or a folder with everything in it, sorted by name."""
    folder = Path(pattern)
    found = folder.rglob("*") if folder.is_dir() else map(Path, glob.glob(pattern, recursive=True))
    files = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
    if folder.is_dir() and source == "jsonl":
        files = [path for path in files if {".jsonl", ".json"} & set(path.suffixes)]
    if not files:
        raise UserError(f"data.path {pattern!r} matches no files (relative to {Path.cwd()})")
    return files


def read_text(path: Path) -> Iterator[Piece]:
    """A file as one document, in pieces.

    Raises:
        UserError: the file is missing, unreadable, empty, binary or not UTF-8.
    """
    begins = True
    for text in stream_text(path):
        yield Piece(text, begins)
        begins = False
    if begins:
        raise UserError(f"{path} is empty; leave it out of data.path")


def stream_text(path: Path, block: int = BLOCK) -> Iterator[str]:
    """The text of a UTF-8 file, which may be of any length, in pieces of at most `block` bytes.

    Raises:
        UserError: the file is missing, unreadable, binary or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, lines, first = 0, 1, True
    with _opened(path) as file:
        while True:
            data = _read(path, file.read, block)
            held = len(decoder.getstate()[0])
            if (zero := data.find(b"\0")) >= 0:
                raise UserError(
                    f"{path} is a binary file, or not UTF-8 text: byte {position + zero} is zero; "
                    "convert it to UTF-8 text or leave it out of data.path"
                )
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                whole = error.object  # begins with bytes held back from the previous block
                raise UserError(
                    f"{path} is not UTF-8 text: byte {position - held + error.start} (line "
                    f"{lines + whole[: error.start].count(10)}) is 0x{whole[error.start]:02x}; "
                    "convert the file to UTF-8"
                ) from error
            if text and first:
                text, first = text.removeprefix("\N{BYTE ORDER MARK}"), False
            if text:
                yield text
            if not data:
                return
            lines += data.count(b"\n")
            position += len(data)


def read_jsonl(path: Path, field: str) -> Iterator[Piece]:
    """One document per line of a file: the string in one field of a JSON object.

    Raises:
        UserError: a line is not such an object, or the file is missing, unreadable or empty.
    """
    empty = True
    with _opened(path) as file:
        lines = iter(functools.partial(_read, path, file.readline, LONGEST_LINE), b"")
        for number, line in enumerate(lines, start=1):
            if text := _field_of(line, field, f"{path} line {number}"):
                empty = False
                yield Piece(text, begins=True)
    if empty:
        raise UserError(f"{path} has no text in field {field!r} of any line")


def _field_of(line: bytes, field: str, where: str) -> str:
    if len(line) == LONGEST_LINE:
        raise UserError(
            f"{where} is longer than {LONGEST_LINE:,} bytes; is there one JSON object per line?"
        )
    if not line.strip():
        return ""
    try:
        values = json.loads(line.rstrip())
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(values, dict) or field not in values:
        has = f"; it has {', '.join(map(repr, values))}" if isinstance(values, dict) else ""
        raise UserError(f"{where} has no field {field!r}{has}; choose one with data.field")
    text = values[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has half a surrogate pair, which is not valid text") from error
    return text


def _opened(path: Path) -> io.BufferedIOBase:
    try:
        if path.suffix == ".gz":
            return gzip.open(path)
        if path.suffix == ".zst":
            return io.BufferedReader(_ZstdFile(path.open("rb")))
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _read(path: Path, read: Callable[[int], bytes], most: int) -> bytes:
    try:
        return read(most)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


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
