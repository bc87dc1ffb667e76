"""The size of a corpus and a digest of its content, found by reading it once."""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from mmrec_jax import checksums
from mmrec_jax.config import DataConfig
from mmrec_jax.data.corpus import Corpus
from mmrec_jax.data.token_cache import VERSION
from mmrec_jax.files import write_text


class Scan(NamedTuple):
    """What one pass over the text of a corpus determines."""

    characters: list[int]  # per part
    digest: str  # of all text and of where documents begin


def scan_corpus(corpus: Corpus, root: Path, config: DataConfig) -> Scan:
    """Reads the entire corpus, unless that was done since its files last changed.

    `root`: the folder of the cache, in which scans are kept.

    Raises:
        UserError: the corpus cannot be read.
    """
    known = None
    if corpus.files:
        how = dataclasses.asdict(config)
        for name in ("tokenizer", "validation_fraction", "test_fraction"):  # of no consequence here
            del how[name]
        stats = [(path, path.stat()) for path in corpus.files]
        files = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        known = root / "scans" / f"{checksums.of_text(json.dumps([VERSION, how, files]))}.json"
        with contextlib.suppress(checksums.Damaged, TypeError):
            return Scan(**checksums.read_sealed(known))
    digest, characters = hashlib.blake2b(digest_size=16), []
    for part in corpus.parts:
        digest.update(b"\xfe")  # UTF-8 contains neither this byte nor 0xff
        count = 0
        for text, begins in part.pieces():
            digest.update((b"\xff" if begins else b"") + text.encode())
            count += len(text)
        characters.append(count)
    scan = Scan(characters, digest.hexdigest())
    if known:
        with contextlib.suppress(OSError):  # the corpus is read again next time
            known.parent.mkdir(exist_ok=True)
            write_text(known, checksums.sealed(scan._asdict()))
    return scan
