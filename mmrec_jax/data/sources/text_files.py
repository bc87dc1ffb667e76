"""Files of text or JSON lines, plain, compressed or in archives, read in constant memory."""

import codecs
import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from mmrec_jax.config import DataConfig
from mmrec_jax.data.corpus import Corpus, Part, Piece, split_shares
from mmrec_jax.data.sources.compression import decompressed, reading
from mmrec_jax.data.sources.file_tree import File, FileTree
from mmrec_jax.errors import UserError
from mmrec_jax.files import regular

BLOCK = 2**20  # bytes per read
LONGEST_LINE = 2**28  # most bytes of a JSON line


def open_corpus(config: DataConfig) -> Corpus:
    """The files of `data.path`, or of each corpus of `data.mixture`, then separate held-out files.

    A document is a file or a folder ("text"), a line ("jsonl") or a row ("parquet").

    Raises:
        UserError: no file matches.
    """
    paths = [(path, split_shares(config)) for _, path in config.components]
    for name, path in (("validation", config.validation_path), ("test", config.test_path)):
        if path:
            paths.append((path, ((name, 1.0),)))
    trees = [FileTree(path, config) for path, _ in paths]
    parts = (
        Part(functools.partial(_pieces, tree, config), shares)
        for tree, (_, shares) in zip(trees, paths, strict=True)
    )
    return Corpus(tuple(parts), tuple(file for tree in trees for file in tree.paths))


def _pieces(tree: FileTree, config: DataConfig) -> Iterator[Piece]:
    for file, begins in tree:
        match config.source:
            case "text":
                yield from read_text(file, begins)
            case "jsonl":
                yield from read_jsonl(file, config.field)
            case "parquet":
                # Imported only on demand, because it takes long.
                from mmrec_jax.data.sources.parquet import read_parquet

                yield from read_parquet(file, config.field)


def read_text(file: File, begins: bool = True) -> Iterator[Piece]:
    """A file as a document, or as the continuation of one, in pieces.

    Raises:
        UserError: the file is unreadable, empty, binary or not UTF-8.
    """
    empty = True
    for text in _decoded(file, BLOCK):
        yield Piece(text, begins and empty)
        empty = False
    if empty:
        raise UserError(f"{file.where} is empty; leave it out with data.exclude")


def check_text(path: Path) -> None:
    """Raises UserError if a file is missing, unreadable or empty, or begins like a binary file."""
    for text in stream_text(path):
        if text:
            return
    raise UserError(f"{path} has nothing to predict: it is empty")


def stream_text(path: Path, block: int = BLOCK) -> Iterator[str]:
    """The text of a UTF-8 file, which may be of any length, in pieces of at most `block` bytes.

    Raises:
        UserError: the file is missing, unreadable, binary or not UTF-8.
    """
    file = File(PurePosixPath(path.name), str(path), lambda: regular(path).open("rb"))
    return _decoded(file, block)


def _decoded(source: File, block: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, lines, first = 0, 1, True
    with _opened(source) as file:
        while True:
            data = _read(source, file.read, block)
            held = len(decoder.getstate()[0])
            if (zero := data.find(b"\0")) >= 0:
                raise UserError(
                    f"{source.where} is a binary file, or not UTF-8 text: byte {position + zero} "
                    "is zero; convert it to UTF-8 text, or leave it out with data.exclude"
                )
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                whole = error.object  # begins with bytes held back from the previous block
                raise UserError(
                    f"{source.where} is not UTF-8 text: byte {position - held + error.start} "
                    f"(line {lines + whole[: error.start].count(10)}) is "
                    f"0x{whole[error.start]:02x}; convert it to UTF-8, or leave it out with "
                    "data.exclude"
                ) from error
            if text and first:
                text, first = text.removeprefix("\N{BYTE ORDER MARK}"), False
            if text:
                yield text
            if not data:
                return
            lines += data.count(b"\n")
            position += len(data)


def read_jsonl(source: File, field: str) -> Iterator[Piece]:
    """One document per line of a file: the string in one field of a JSON object.

    Raises:
        UserError: a line is not such an object, or the file is unreadable or empty.
    """
    empty = True
    with _opened(source) as file:
        lines = iter(functools.partial(_read, source, file.readline, LONGEST_LINE), b"")
        for number, line in enumerate(lines, start=1):
            if text := _field_of(line, field, f"{source.where} line {number}"):
                empty = False
                yield Piece(text, begins=True)
    if empty:
        raise UserError(f"{source.where} has no text in field {field!r} of any line")


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


@contextlib.contextmanager
def _opened(file: File) -> Iterator[io.BufferedIOBase]:
    with contextlib.ExitStack() as stack:
        with reading(file.where):
            stored = stack.enter_context(file.open())
            content = stack.enter_context(decompressed(stored, file.name))
        yield content


def _read(file: File, read: Callable[[int], bytes], most: int) -> bytes:
    with reading(file.where):
        return read(most)
