"""The place of the cache; files that are written completely or not at all, and safe to open."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def cache_root() -> Path:
    """The folder of the cache."""
    if folder := os.environ.get("MMREC_CACHE_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrec_jax"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces `path` when the block ends without an error.

    The data reaches the disk before the new name does, so a crash never leaves a truncated file.

    Raises:
        OSError: the file cannot be written; its previous contents remain.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Writes a UTF-8 file, completely or not at all; `errors` is that of `str.encode`."""
    with replacing(path) as file:
        file.write(text.encode(errors=errors))


def regular(path: Path) -> Path:
    """The path itself, if it can be opened without waiting: a named pipe could wait forever.

    Raises:
        OSError: it is something else than a file or a folder.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path


def check_writable(folder: Path) -> None:
    """Makes a file without a name in a folder, to find out whether that is possible.

    Raises:
        OSError: it is not.
    """
    tempfile.TemporaryFile(dir=folder).close()


def is_leftover(path: Path) -> bool:
    """Whether a file is a partial one that a killed process left behind."""
    return re.fullmatch(r".+\.\d+\.tmp", path.name) is not None


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends without an error.

    Anything that an earlier process left unfinished is deleted.

    Raises:
        OSError: the folder cannot be written.
    """
    partial = path.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        _sync_folder(partial)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Makes the names in a folder survive a crash; does nothing if folders cannot be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
