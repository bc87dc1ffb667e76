"""Encodes documents in several processes, with memory that does not grow with the corpus."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mmrec_jax.data.corpus import Piece
from mmrec_jax.data.token_files import TokenCounts
from mmrec_jax.data.tokenizers import Tokenizer, document_tokens, tokenizer_from_json

BLOCK = 2**19  # most characters encoded in one call
LARGE = 2**23  # fewest characters for which starting processes pays off


class Encoded(NamedTuple):
    """The tokens of a block."""

    tokens: np.ndarray  # int32 [tokens]; each document starts with a token of its own
    characters: int
    counts: TokenCounts


def blocks(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Cuts and gathers pieces into blocks that do not depend on how the pieces were cut.

    A long document is cut at line ends that no token spans: those with no white space next to them.
    A block without such a line end is cut at BLOCK characters.
    """
    block, size = [], 0
    for piece in _documents_in_blocks(pieces):
        if block and size + len(piece.text) > BLOCK:
            yield block
            block, size = [], 0
        block.append(piece)
        size += len(piece.text)
    if block:
        yield block


def _documents_in_blocks(pieces: Iterable[Piece]) -> Iterator[Piece]:
    held, begins = "", False
    for piece in pieces:
        if piece.begins:
            if held:
                yield Piece(held, begins)
            held, begins = "", True
        held += piece.text
        while len(held) > BLOCK:
            end = _cut(held)
            yield Piece(held[:end], begins)
            held, begins = held[end:], False
    if held:
        yield Piece(held, begins)


def _cut(text: str) -> int:
    end = BLOCK
    while (end := text.rfind("\n", 1, end)) > 0:
        if not text[end - 1].isspace() and not text[end + 1].isspace():
            return end + 1
    return BLOCK


def encode_block(tokenizer: Tokenizer, block: list[Piece]) -> Encoded:
    """Encodes a block."""
    parts = [
        document_tokens(tokenizer, text) if begins else tokenizer.encode(text)
        for text, begins in block
    ]
    tokens = np.concatenate(parts)
    counts = TokenCounts(
        tokens=len(tokens),
        documents=sum(piece.begins for piece in block),
        num_bytes=sum(len(piece.text.encode()) for piece in block),
        num_words=sum(len(piece.text.split()) for piece in block),
        num_lines=sum(piece.text.count("\n") for piece in block),
        unknown=0 if tokenizer.unknown is None else int((tokens == tokenizer.unknown).sum()),
    )
    return Encoded(tokens, sum(len(piece.text) for piece in block), counts)


# Encodes blocks, each with a key that its result gets as well.
Encode = Callable[[Iterable[tuple[Any, list[Piece]]]], Iterator[tuple[Any, Encoded]]]


@contextlib.contextmanager
def encoder(tokenizer: Tokenizer, characters: int) -> Iterator[Encode]:
    """A function that encodes blocks in order, with only a few of them in memory at a time.

    If there are many `characters` to encode, it has one process per core, until the `with` ends.
    """
    if characters < LARGE:
        yield lambda blocks: ((key, encode_block(tokenizer, block)) for key, block in blocks)
        return
    workers = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")  # not fork: a process that uses JAX has threads
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, _start_worker, (tokenizer.to_json(),)
    )

    def encode(blocks: Iterable[tuple[Any, list[Piece]]]) -> Iterator[tuple[Any, Encoded]]:
        under_way: collections.deque[tuple[Any, concurrent.futures.Future]] = collections.deque()
        for key, block in blocks:
            under_way.append((key, pool.submit(_encode, block)))
            if len(under_way) > 2 * workers:
                first, future = under_way.popleft()
                yield first, future.result()
        for key, future in under_way:
            yield key, future.result()

    try:
        yield encode
    finally:
        pool.shutdown(cancel_futures=True)


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer_json: str) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is already one process per core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    _worker_tokenizer = tokenizer_from_json(tokenizer_json)

    def leave_with_parent():  # a parent that is killed cannot stop its workers
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _encode(block: list[Piece]) -> Encoded:
    return encode_block(_worker_tokenizer, block)
