"""The files of a corpus: which there are, in which order, and where a document begins.

An archive that `data.path` names is read as if it were a folder. Names are relative to `data.path`:
to the folder, to the archive, or to the part of a glob before its first wildcard.
"""

import contextlib
import fnmatch
import functools
import glob
import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mmrec_jax.config import DataConfig
from mmrec_jax.data.sources.archives import (
    is_archive,
    is_compressed_archive,
    members,
    open_archive,
)
from mmrec_jax.errors import UserError

_USUAL_FILES = {"text": "*", "jsonl": "*.jsonl,*.jsonl.*,*.json,*.json.*", "parquet": "*.parquet"}


class File(NamedTuple):
    """A file on disk or in an archive."""

    name: PurePosixPath
    where: str  # how messages name it
    open: Callable[[], io.BufferedIOBase]


class FileTree:
    """The files that a path and the knobs `data.files`, `exclude` and so on select."""

    def __init__(self, pattern: str, config: DataConfig):
        """`pattern`: a file, an archive, a folder, or a glob.

        Raises:
            UserError: no file matches, or an archive cannot be shuffled.
        """
        self._pattern, self._config = pattern, config
        path, root = Path(pattern), _root(Path(pattern))
        self._named = not path.is_dir()  # whether the pattern itself names the files
        found = map(Path, glob.glob(pattern, recursive=True)) if self._named else path.rglob("*")
        self._plain: dict[PurePosixPath, Path] = {}
        self._archives: dict[PurePosixPath, Path] = {}
        for file in sorted(found):
            name = PurePosixPath(file.relative_to(root))
            if self._named and is_archive(file):
                self._archives[name] = file
            elif (
                self._is_selected(name, named=self._named)
                and file.is_file()
                and file.stat().st_size >= self._least(named=self._named)
            ):
                self._plain[name] = file
        self.paths = (*self._plain.values(), *self._archives.values())
        if not self.paths:
            raise self._no_files(f" (relative to {Path.cwd()})")
        for archive in filter(is_compressed_archive, self._archives.values()):
            if config.shuffle_documents:
                raise UserError(
                    f"data.shuffle_documents is true, but {archive} can only be read in its order; "
                    "decompress it into a .tar, or set --config.data.shuffle_documents=false"
                )

    def __iter__(self) -> Iterator[tuple[File, bool]]:
        """Every file, to be read before the next one, and whether it begins a document.

        Compressed archives come last, in the order of their names.

        Raises:
            UserError: an archive cannot be read, or nothing in it is selected.
        """
        with contextlib.ExitStack() as stack:
            files = [
                File(name, str(path), functools.partial(path.open, "rb"))
                for name, path in self._plain.items()
            ]
            streams = []
            for name, path in self._archives.items():
                content = self._content(name, path, stack)
                if is_compressed_archive(path):
                    streams.append(content)
                else:
                    files += content
            before = None
            for file in itertools.chain(sorted(files, key=self._place), *streams):
                yield file, self._document(file) != before
                before = self._document(file)
            if before is None:
                raise self._no_files()

    def _content(
        self, name: PurePosixPath, path: Path, stack: contextlib.ExitStack
    ) -> Iterator[File]:
        """The selected files of an archive, which stays open as long as the stack."""
        archive = stack.enter_context(open_archive(path))
        for member, info in members(archive, path):
            member = name / member
            if info.size >= self._least() and self._is_selected(member):
                open_member = functools.partial(archive.extractfile, info)
                yield File(member, f"{path}: {info.name}", open_member)

    def _is_selected(self, name: PurePosixPath, named: bool = False) -> bool:
        """Whether the knobs select a name; `named`: data.path itself names this file."""
        if any(part.startswith(".") for part in name.parts):
            return False
        for pattern in _patterns(self._config.exclude):
            parts = [str(name)] if "/" in pattern else name.parts
            if any(fnmatch.fnmatchcase(part, pattern) for part in parts):
                return False
        wanted = self._config.files or ("*" if named else _USUAL_FILES[self._config.source])
        return any(fnmatch.fnmatchcase(name.name, pattern) for pattern in _patterns(wanted))

    def _least(self, named: bool = False) -> int:
        """Bytes of the smallest file to read; an empty one is read, and refused, only if named."""
        return max(self._config.min_file_bytes, 0 if named else 1)

    def _document(self, file: File) -> PurePosixPath:
        return file.name.parent if self._config.join == "folder" else file.name

    def _place(self, file: File):
        """What files are sorted by."""
        document = self._document(file)
        if self._config.shuffle_documents:
            return hashlib.blake2b(os.fsencode(document), digest_size=8).digest(), file.name
        return document, file.name

    def _no_files(self, where: str = "") -> UserError:
        config = self._config
        paths = {"path": config.path, "validation_path": config.validation_path}
        paths["test_path"] = config.test_path
        knob = next((name for name, path in paths.items() if path == self._pattern), "mixture")
        chosen = {"files": config.files, "exclude": config.exclude}
        chosen["min_file_bytes"] = config.min_file_bytes
        given = ", ".join(f"data.{name}={value!r}" for name, value in chosen.items() if value)
        return UserError(
            f"data.{knob} {self._pattern!r}{given and f' with {given}'} matches no files{where}"
        )


def _root(path: Path) -> Path:
    """What the names of a pattern's files are relative to."""
    if path.is_dir() or (is_archive(path) and path.is_file()):
        return path
    root = Path(*itertools.takewhile(lambda part: glob.escape(part) == part, path.parts))
    return root.parent if root == path else root


def _patterns(value: str) -> Iterable[str]:
    return filter(None, map(str.strip, value.split(",")))
