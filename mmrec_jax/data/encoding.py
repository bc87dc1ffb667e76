"""Encodes documents in several processes, with memory that does not grow with the corpus."""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mmrec_jax.data.corpus import Piece
from mmrec_jax.data.tokenizers import Tokenizer, document_tokens, tokenizer_from_json

BLOCK = 2**19  # most characters encoded in one call
LARGE = 2**23  # fewest characters for which starting processes pays off


class Encoded(NamedTuple):
    """The tokens of a block."""

    tokens: np.ndarray  # int32 [tokens]; each document starts with a token of its own
    documents: int  # how many begin in the block
    characters: int
    num_bytes: int  # in UTF-8
    unknown: int  # tokens of characters outside the vocabulary


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
    return Encoded(
        tokens=tokens,
        documents=sum(piece.begins for piece in block),
        characters=sum(len(piece.text) for piece in block),
        num_bytes=sum(len(piece.text.encode()) for piece in block),
        unknown=0 if tokenizer.unknown is None else int((tokens == tokenizer.unknown).sum()),
    )


class Encoder:
    """Encodes blocks in order. A context manager.

    For a large corpus it starts one process per core.
    """

    def __init__(self, tokenizer: Tokenizer, characters: int):
        """`characters`: the number of characters to encode."""
        self._tokenizer = tokenizer
        self._workers = len(os.sched_getaffinity(0)) if characters >= LARGE else 0
        self._pool = None

    def __enter__(self) -> "Encoder":
        if self._workers:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._workers,
                # Not fork: a process that uses JAX has threads.
                multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._tokenizer.to_json(),),
            )
        return self

    def __exit__(self, *_):
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def encode(self, blocks: Iterable[list[Piece]]) -> Iterator[Encoded]:
        """Yields the tokens of each block. Only a few blocks are in memory at a time."""
        if not self._pool:
            for block in blocks:
                yield encode_block(self._tokenizer, block)
            return
        under_way: collections.deque[concurrent.futures.Future] = collections.deque()
        for block in blocks:
            under_way.append(self._pool.submit(_encode, block))
            if len(under_way) > 2 * self._workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


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
