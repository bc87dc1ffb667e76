"""The cache of token files, and the check that they are intact."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrec_jax import checksums
from mmrec_jax.checksums import Damaged
from mmrec_jax.data.token_files import TokenCounts, TokenReader
from mmrec_jax.data.tokenizers import Tokenizer, tokenizer_from_json
from mmrec_jax.files import new_folder, regular

VERSION = 2  # of the file format; corpora prepared in another one are prepared again
ALWAYS_CHECKED = 2**30  # up to this many bytes of token files, every start computes checksums


class PreparedSplit(NamedTuple):
    """The token files of a split."""

    tokens: TokenReader
    counts: TokenCounts
    digest: str  # of all tokens
    part_tokens: tuple[int, ...]  # tokens of each part of the corpus, in order


class Prepared(NamedTuple):
    """A tokenized corpus on disk."""

    folder: Path
    tokenizer: Tokenizer
    splits: dict[str, PreparedSplit]


def open_prepared(folder: Path, check: bool = False) -> Prepared:
    """Opens token files.

    `check` compares them with their checksums. Beyond ALWAYS_CHECKED bytes, only files whose
    modification time has changed since they were written are read for that.

    Raises:
        Damaged: a file is missing, unreadable, or differs from what was written.
    """
    try:
        index = checksums.read_sealed(folder / "index.json")
        tokenizer_json = regular(folder / "tokenizer.json").read_text()
        if check:
            _check(folder, index, tokenizer_json)
        tokenizer = tokenizer_from_json(tokenizer_json)
        dtype, splits = np.dtype(index["dtype"]), {}
        if dtype not in (np.uint16, np.uint32):
            raise ValueError(f"{dtype} is not the type of tokens")
        for name, values in index["splits"].items():
            paths = [folder / _plain(file["name"]) for file in values["files"]]
            reader = TokenReader(paths, dtype, tokenizer.document)
            counts = TokenCounts(**values["counts"])
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError(f"{counts} are not numbers of tokens")
            parts = tuple(values.get("part_tokens", [counts.tokens]))  # older runs do not have it
            splits[name] = PreparedSplit(reader, counts, values["digest"], parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise Damaged(f"{folder} cannot be read ({' '.join(str(error).split())})") from error
    return Prepared(folder, tokenizer, splits)


def copy_splits(prepared: Prepared, names: tuple[str, ...], folder: Path) -> None:
    """Copies the token files of some splits to another folder, completely or not at all.

    On the same disk the copies are hard links, which take no space.
    """
    try:
        open_prepared(folder, check=True)
        return
    except Damaged:
        shutil.rmtree(folder, ignore_errors=True)
    index = checksums.read_sealed(prepared.folder / "index.json")
    index["splits"] = {name: index["splits"][name] for name in names}
    files = [file["name"] for split in index["splits"].values() for file in split["files"]]
    with new_folder(folder) as partial:
        for name in ("tokenizer.json", *files):
            try:
                os.link(prepared.folder / name, partial / name)
            except OSError:  # another disk
                shutil.copy2(prepared.folder / name, partial / name)
        (partial / "index.json").write_text(checksums.sealed(index, indent=2))


def _plain(name: str) -> str:
    """The name of a file that lies in the folder itself."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not the name of a token file")
    return name


def _check(folder: Path, index: dict, tokenizer_json: str) -> None:
    if checksums.of_text(tokenizer_json) != index["tokenizer"]:
        raise Damaged(f"{folder / 'tokenizer.json'} has changed")
    files = [file for split in index["splits"].values() for file in split["files"]]
    small = sum(file["bytes"] for file in files) <= ALWAYS_CHECKED
    for file in files:
        path = folder / file["name"]
        stat = path.stat()
        if stat.st_size != file["bytes"]:
            raise Damaged(f"{path} has {stat.st_size:,} bytes instead of {file['bytes']:,}")
        suspect = small or stat.st_mtime_ns != file["changed"]
        if suspect and checksums.of_file(path) != file["checksum"]:
            raise Damaged(f"{path} does not match its checksum")
