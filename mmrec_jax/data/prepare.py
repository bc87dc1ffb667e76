"""Turns a corpus into token files, once.

The files are kept in a cache (~/.cache/mmrec_jax, or $MMREC_CACHE_DIR), in a folder whose name is
derived from the content of the corpus, its splits, the tokenizer and VERSION.

<source>-<tokenizer>-<key>/
    index.json  tokenizer.json  train-00000.array_record ...  validation-...  test-...
scans/          the Scan of each corpus, valid until its files change

Processes that prepare the same corpus in the same cache, on one host or several, share the work
(data/stretches.py).
"""

import contextlib
import errno
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID

from mmrec_jax import checksums
from mmrec_jax.checksums import Damaged
from mmrec_jax.config import Config
from mmrec_jax.data.corpus import SPLITS, Corpus, Piece, split_pieces
from mmrec_jax.data.encoding import blocks, encoder
from mmrec_jax.data.scan import Scan, scan_corpus
from mmrec_jax.data.sources import open_corpus
from mmrec_jax.data.stretches import SharedEncoding, Stretch, stretches
from mmrec_jax.data.token_cache import (
    VERSION,
    Prepared,
    open_prepared,
)
from mmrec_jax.data.token_files import TokenCounts, TokenWriter
from mmrec_jax.data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    SubwordTokenizer,
    Tokenizer,
    load_tokenizer,
)
from mmrec_jax.errors import UserError
from mmrec_jax.files import cache_root, new_folder, write_text

BPE_CHARACTERS = 50_000_000  # most characters to learn merges from, spread over the training split


def prepare(config: Config, say: Callable[[str], None] = print) -> Prepared:
    """The token files of a config's corpus, written first if they are not in the cache.

    Raises:
        UserError: the corpus cannot be read, the disk is full, or the cache cannot be written.
    """
    corpus = open_corpus(config.data)
    root = cache_root()
    with _explaining_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    scan = scan_corpus(corpus, root, config.data)
    folder = root / _name(corpus, scan, config)
    if prepared := _open_or_say(folder, say):
        return prepared
    with _explaining_errors(root):
        _write(corpus, scan, config, folder, say)
    return open_prepared(folder)


@contextlib.contextmanager
def _explaining_errors(root: Path) -> Iterator[None]:
    """Turns an error of the disk into one that says what to do about the cache."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the disk of the cache {root}; free some space, or set the "
                "environment variable MMREC_CACHE_DIR to another folder"
            ) from error
        raise UserError(
            f"the cache {root} cannot be written: {error.strerror or error}; set the environment "
            "variable MMREC_CACHE_DIR to another folder"
        ) from error


def _open_or_say(folder: Path, say: Callable[[str], None]) -> Prepared | None:
    """The token files, if there are any and they are intact; damage is reported."""
    if not folder.exists():
        return None
    try:
        return open_prepared(folder, check=True)
    except Damaged as damage:
        say(f"the cache is damaged: {damage}; preparing the corpus again")
        return None


@contextlib.contextmanager
def _locked(folder: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """One process at a time is in such a block; whether the token files still have to be made."""
    lock = filelock.FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say("another process is preparing this corpus; waiting for its next step")
        lock.acquire()
    try:
        is_missing = _open_or_say(folder, lambda _: None) is None
        if is_missing:
            shutil.rmtree(folder, ignore_errors=True)
        yield is_missing
    finally:
        lock.release()


def _name(corpus: Corpus, scan: Scan, config: Config) -> str:
    data, kind = config.data, config.data.tokenizer
    tokenizer = {"kind": kind}
    if kind.endswith(".json"):
        kind, tokenizer = "file", {"file": load_tokenizer(Path(kind)).to_json()}
    elif kind != "byte":
        tokenizer["vocab_size"] = config.model.vocab_size
    shares = [part.shares for part in corpus.parts]
    key = checksums.of_text(json.dumps([VERSION, scan.digest, shares, tokenizer]))
    return f"{data.source}-{kind}-{key}"


# --- writing ---


def _write(
    corpus: Corpus, scan: Scan, config: Config, folder: Path, say: Callable[[str], None]
) -> None:
    """Writes the token files, together with other processes that do the same."""
    start = time.perf_counter()
    small = sum(scan.characters) < 2**22
    unfinished = folder.with_suffix(".encoded")
    with Progress(transient=True, disable=small or not Console().is_terminal) as bar:
        with _locked(folder, say) as is_missing:
            if not is_missing:
                return
            tokenizer = _tokenizer(unfinished, lambda: _make_tokenizer(corpus, scan, config, bar))
        if done := len(list(unfinished.glob("*.tokens"))):
            say(f"{done} stretches of the text are already encoded, in {unfinished}")
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        shared = SharedEncoding(unfinished, folder, dtype)
        with encoder(tokenizer, sum(scan.characters)) as encode:
            found = None
            while found is None or not shared.wait(found):
                advance = functools.partial(bar.advance, _begin(bar, "encoding", scan))
                found = shared.encode(stretches(corpus, scan), encode, advance)
        with _locked(folder, say) as is_missing:
            if is_missing:
                counts = _join(shared, found, tokenizer, dtype, len(corpus.parts), folder)
                seconds, here = time.perf_counter() - start, shared.num_bytes / 1e6
                is_all = shared.num_bytes == counts.num_bytes
                how = f"{here / seconds:.1f} MB/s" if is_all else f"{here:,.1f} MB encoded here"
                say(
                    f"prepared {counts.tokens:,} tokens from {counts.num_bytes / 1e6:,.1f} MB in "
                    f"{seconds:.1f} s ({how}): {folder}"
                )
            else:
                here = shared.num_bytes / 1e6
                say(f"encoded {here:,.1f} MB here; another process has completed {folder}")
            shutil.rmtree(unfinished, ignore_errors=True)


def _tokenizer(unfinished: Path, make: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer, which is made only once for all that share the work."""
    kept = unfinished / "tokenizer.json"
    if not kept.exists():
        tokenizer = make()
        unfinished.mkdir(exist_ok=True)
        write_text(kept, tokenizer.to_json())
    return load_tokenizer(kept)


def _make_tokenizer(corpus: Corpus, scan: Scan, config: Config, bar: Progress) -> Tokenizer:
    """The tokenizer, trained on the training split alone or read from a file.

    Raises:
        UserError: its vocabulary is larger than the model's.
    """
    kind, vocab_size = config.data.tokenizer, config.model.vocab_size

    def texts(limit: float) -> Iterator[str]:
        task = _begin(bar, "learning the vocabulary", scan)
        training = (piece for name, piece in _all_pieces(corpus, scan) if name == "train")
        share, owed = limit / max(sum(scan.characters), 1), 1.0
        for block in blocks(training):
            bar.advance(task, sum(len(piece.text) for piece in block))
            owed += share
            if owed >= 1:  # takes every block, or evenly spaced ones
                owed -= 1
                for piece in block:
                    # By line, because the library holds all that it derives from a text in memory.
                    yield from piece.text.splitlines(keepends=True)

    match kind:
        case "char":
            tokenizer = CharTokenizer.train(texts(np.inf), vocab_size)
        case "bpe":
            tokenizer = SubwordTokenizer.train(texts(BPE_CHARACTERS), vocab_size)
        case "byte":
            tokenizer = ByteTokenizer()
        case path:
            tokenizer = load_tokenizer(Path(path))
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"model.vocab_size is {vocab_size}; data.tokenizer {kind!r} needs at least "
            f"{tokenizer.vocab_size}"
        )
    return tokenizer


def _all_pieces(corpus: Corpus, scan: Scan) -> Iterator[tuple[str, Piece]]:
    for part, characters in zip(corpus.parts, scan.characters, strict=True):
        yield from split_pieces(part, characters)


def _join(
    shared: SharedEncoding,
    found: list[Stretch],
    tokenizer: Tokenizer,
    dtype: np.dtype,
    num_parts: int,
    folder: Path,
) -> TokenCounts:
    """Makes the folder of token files from all stretches; the counts of all splits together."""
    index = {"version": VERSION, "dtype": dtype.name}
    index |= {"tokenizer": checksums.of_text(tokenizer.to_json()), "splits": {}}
    total = TokenCounts()
    with new_folder(folder) as partial:
        for name in SPLITS:
            counts, part_tokens = TokenCounts(), [0] * num_parts
            writer = TokenWriter(partial / name, dtype, tokenizer.document)
            for stretch in found:
                if stretch.split == name:
                    writer.write(shared.tokens(stretch))
                    of_stretch = shared.counts(stretch)
                    counts = counts.plus(of_stretch)
                    part_tokens[stretch.part] += of_stretch.tokens
            described = {"counts": counts._asdict(), "part_tokens": part_tokens}
            index["splits"][name] = described | writer.close()
            total = total.plus(counts)
        (partial / "tokenizer.json").write_text(tokenizer.to_json())
        (partial / "index.json").write_text(checksums.sealed(index, indent=2))
    return total


def _begin(bar: Progress, what: str, scan: Scan) -> TaskID:
    """Shows the progress of a task in place of the previous one."""
    for task in bar.task_ids:
        bar.remove_task(task)
    return bar.add_task(what, total=sum(scan.characters))
