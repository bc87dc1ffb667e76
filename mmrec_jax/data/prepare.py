"""Turns a corpus into token files, once.

The files are kept in a cache (~/.cache/mmrec_jax, or $MMREC_CACHE_DIR), in a folder whose name is
derived from the content of the corpus, its splits, the tokenizer and VERSION.

<source>-<tokenizer>-<key>/
    index.json  tokenizer.json  train-00000.array_record ...  validation-...  test-...
scans/          the Scan of each corpus, valid until its files change
"""

import contextlib
import errno
import itertools
import json
import operator
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID

from mmrec_jax.config import Config
from mmrec_jax.data.corpus import SPLITS, Corpus, Piece, split_pieces
from mmrec_jax.data.encoding import blocks, encoder
from mmrec_jax.data.scan import Scan, scan_corpus
from mmrec_jax.data.sources import open_corpus
from mmrec_jax.data.token_cache import (
    VERSION,
    Damaged,
    Prepared,
    cache_root,
    open_prepared,
    text_digest,
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
from mmrec_jax.files import new_folder

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
    with _explaining_errors(root), _locked(folder, say):
        # Another process may have prepared it while this one waited.
        if prepared := _open_or_say(folder, lambda _: None):
            return prepared
        shutil.rmtree(folder, ignore_errors=True)
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


def _locked(folder: Path, say: Callable[[str], None]) -> filelock.AcquireReturnProxy:
    lock = filelock.FileLock(folder.with_suffix(".lock"))
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        say("another process is preparing this corpus; waiting for it")
        return lock.acquire()


def _name(corpus: Corpus, scan: Scan, config: Config) -> str:
    data, kind = config.data, config.data.tokenizer
    tokenizer = {"kind": kind}
    if kind.endswith(".json"):
        kind, tokenizer = "file", {"file": load_tokenizer(Path(kind)).to_json()}
    elif kind != "byte":
        tokenizer["vocab_size"] = config.model.vocab_size
    shares = [part.shares for part in corpus.parts]
    key = text_digest(json.dumps([VERSION, scan.digest, shares, tokenizer]))
    return f"{data.source}-{kind}-{key}"


# --- writing ---


def _write(
    corpus: Corpus, scan: Scan, config: Config, folder: Path, say: Callable[[str], None]
) -> None:
    """Writes token files to a temporary folder, which becomes `folder` when it is complete."""
    start = time.perf_counter()
    small = sum(scan.characters) < 2**22
    bar = Progress(transient=True, disable=small or not Console().is_terminal)
    with new_folder(folder) as partial, bar:
        tokenizer = _make_tokenizer(corpus, scan, config, bar)
        counts = _write_files(corpus, scan, tokenizer, partial, bar)
    num_bytes, seconds = sum(count.num_bytes for count in counts), time.perf_counter() - start
    say(
        f"prepared {sum(count.tokens for count in counts):,} tokens from {num_bytes / 1e6:,.1f} MB "
        f"in {seconds:.1f} s ({num_bytes / 1e6 / seconds:.1f} MB/s): {folder}"
    )


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


def _write_files(
    corpus: Corpus, scan: Scan, tokenizer: Tokenizer, folder: Path, bar: Progress
) -> list[TokenCounts]:
    """Writes all files of the folder and returns the counts of each split."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    writers = {name: TokenWriter(folder / name, dtype, tokenizer.document) for name in SPLITS}
    counts = dict.fromkeys(SPLITS, TokenCounts())
    part_tokens: dict[str, list[int]] = {name: [] for name in SPLITS}
    task = _begin(bar, "writing tokens", scan)
    with encoder(tokenizer, sum(scan.characters)) as encode:
        for part, characters in zip(corpus.parts, scan.characters, strict=True):
            before = {name: counts[name].tokens for name in SPLITS}
            pieces = split_pieces(part, characters)
            for name, of_split in itertools.groupby(pieces, key=operator.itemgetter(0)):
                for block in encode(blocks(piece for _, piece in of_split)):
                    writers[name].write(block.tokens)
                    counts[name] = counts[name].plus(block.counts)
                    bar.advance(task, block.characters)
            for name in SPLITS:
                part_tokens[name].append(counts[name].tokens - before[name])
    index = {
        "version": VERSION,
        "dtype": dtype.name,
        "tokenizer": text_digest(tokenizer.to_json()),
        "splits": {
            name: {
                "counts": counts[name]._asdict(),
                "part_tokens": part_tokens[name],
                **writer.close(),
            }
            for name, writer in writers.items()
        },
    }
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    (folder / "index.json").write_text(json.dumps(index, indent=2) + "\n")
    return list(counts.values())


def _begin(bar: Progress, what: str, scan: Scan) -> TaskID:
    """Shows the progress of a task in place of the previous one."""
    for task in bar.task_ids:
        bar.remove_task(task)
    return bar.add_task(what, total=sum(scan.characters))
