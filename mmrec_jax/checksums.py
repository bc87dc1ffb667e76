"""Checksums of what is written, so that a change is noticed when it is read.

JSON objects carry their own; the files of a folder have theirs in its checksums.json. They find
what a disk, a cable or an editor has changed; whoever wants to deceive can write them anew.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mmrec_jax.files import regular, write_text

OF_FOLDER = "checksums.json"


class Damaged(Exception):
    """Something differs from what was written, or cannot be read at all."""


def of_text(text: str) -> str:
    """The checksum of a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def of_file(path: Path) -> str:
    """The checksum of a file.

    Raises:
        OSError: it cannot be read.
    """
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sealed(values: dict, indent: int | None = None) -> str:
    """A JSON object whose last value, "checksum", is that of the text before it."""
    text = json.dumps(values, indent=indent)
    body = text[:-1].rstrip()
    before, after = ("\n" + " " * indent, "\n") if indent else (" ", "")
    return f'{body},{before}"checksum": "{_of_body(body)}"{after}}}\n'


def unsealed(text: str) -> dict:
    """The object that was sealed, or an object without a checksum, which older code has written.

    Raises:
        Damaged: it has changed, or is not a JSON object.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"it is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise Damaged("it is not a JSON object")
    checksum = values.pop("checksum", None)
    if checksum is not None and checksum != _of_body(text[: text.rfind(",")]):
        raise Damaged("it does not match its checksum")
    return values


def read_sealed(path: Path) -> dict:
    """The object in a file.

    Raises:
        Damaged: it has changed, or cannot be read; the message begins with the path.
    """
    try:
        return unsealed(regular(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Damaged(f"{path} cannot be read: {reason}") from error
    except Damaged as error:
        raise Damaged(f"{path} cannot be read: {error}") from error


def seal_folder(folder: Path, without: Sequence[str] = ()) -> None:
    """Writes the checksums of all files in a folder and below, except those of some names.

    Raises:
        OSError: a file cannot be read or written.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in without]
    found = {path.relative_to(folder).as_posix(): of_file(path) for path in sorted(files)}
    write_text(folder / OF_FOLDER, sealed(found, indent=2))


def verify_folder(folder: Path, parts: Sequence[str] = (), share: tuple[int, int] = (0, 1)) -> bool:
    """Compares the files of a folder with their checksums.

    Args:
        parts: names of files and folders in it, if not all are to be verified.
        share: (i, n) for the i-th of n shares of the work.

    Returns:
        Whether there are checksums; older code has written none.

    Raises:
        Damaged: a file has changed or cannot be read; the message begins with its path.
    """
    if not (folder / OF_FOLDER).exists():
        return False
    wanted = read_sealed(folder / OF_FOLDER)
    names = [name for name in wanted if not parts or name.split("/")[0] in parts]
    for name in names[share[0] :: share[1]]:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise Damaged(f"{folder / OF_FOLDER} names {name!r}, which is not in its folder")
        try:
            found = of_file(folder / name)
        except OSError as error:
            raise Damaged(f"{folder / name} cannot be read: {error.strerror}") from error
        if found != wanted[name]:
            raise Damaged(f"{folder / name} does not match its checksum")
    return True


def _of_body(body: str) -> str:
    return hashlib.blake2b(body.encode(errors="surrogatepass"), digest_size=8).hexdigest()
