"""Tar archives, read without extracting them and in constant memory."""

import contextlib
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath

from mmrec_jax.data.sources.compression import BLOCK, SUFFIXES, decompressed, reading

_SHORT = {".tgz": ".gz", ".txz": ".xz"}  # of .tar.gz and .tar.xz


def is_archive(path: PurePath) -> bool:
    """Whether a file is a tar archive, judged by its name."""
    return path.suffix in (".tar", *_SHORT) or is_compressed_archive(path)


def is_compressed_archive(path: PurePath) -> bool:
    """Whether a file is a compressed tar archive, whose members can only be read in their order."""
    ends = path.suffixes[-2:]
    return path.suffix in _SHORT or (len(ends) == 2 and ends[0] == ".tar" and ends[1] in SUFFIXES)


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """An archive to read.

    Raises:
        UserError: it cannot be read, or is not an archive.
    """
    with contextlib.ExitStack() as stack:
        with reading(str(path)):
            file, mode = stack.enter_context(path.open("rb")), "r:"
            if is_compressed_archive(path):
                suffix = _SHORT.get(path.suffix, path.suffix)
                file, mode = decompressed(file, PurePath(f"archive{suffix}")), "r|"
            archive = stack.enter_context(tarfile.open(fileobj=file, mode=mode, tarinfo=_Header))
        yield archive


def members(
    archive: tarfile.TarFile, path: Path
) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo]]:
    """The files of an archive in their order, with their names; links and devices are left out.

    Raises:
        UserError: the archive is truncated or corrupt.
    """
    while True:
        with reading(str(path)):
            info = archive.next()
            if info is None:
                while archive.fileobj.read(BLOCK):  # to the checksum of the compressed file
                    pass
                return
        archive.members.clear()  # tarfile would keep them all
        if info.isreg():
            yield PurePosixPath(info.name.lstrip("/")), info


class _Header(tarfile.TarInfo):
    """A header. `tarfile` itself takes a damaged or missing one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the mark at the end of a complete archive
            raise
        except tarfile.HeaderError as error:
            message = f"the archive is truncated or damaged ({error})"
            raise tarfile.ReadError(message) from error
