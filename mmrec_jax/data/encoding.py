"""Documents to tokens, in several processes, with memory that does not grow with the corpus."""

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

BLOCK = 2**19  # characters that are encoded at once, at most
LARGE = 2**23  # characters from which processes are worth starting


class Encoded(NamedTuple):
    """Tokens of a block."""

    tokens: np.ndarray  # int32 [tokens], with a token of its own before each document
    documents: int  # that begin in it
    characters: int
    num_bytes: int  # UTF-8
    unknown: int  # tokens of characters that the vocabulary does not have


def blocks(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Cuts and gathers pieces into blocks, the same ones however the pieces were cut.

    A long document is cut at line ends that a tokenizer would not look across: between two that are
    not white space. Where a block has none it is cut anywhere.
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
    """The tokens of a block."""
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
    """Encodes blocks, in their order. A context manager.

    It starts processes if there is much to do: as many as there are cores.
    """

    def __init__(self, tokenizer: Tokenizer, characters: int):
        """`characters`: how many there are to encode."""
        self._tokenizer = tokenizer
        self._workers = len(os.sched_getaffinity(0)) if characters >= LARGE else 0
        self._pool = None

    def __enter__(self) -> "Encoder":
        if self._workers:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._workers,
                # Not fork: a process with JAX in it has threads.
                multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._tokenizer.to_json(),),
            )
        return self

    def __exit__(self, *_):
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def encode(self, blocks: Iterable[list[Piece]]) -> Iterator[Encoded]:
        """The blocks' tokens. Few blocks are in memory at once."""
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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process a core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    _worker_tokenizer = tokenizer_from_json(tokenizer_json)

    def leave_with_parent():  # a killed one cannot say so
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _encode(block: list[Piece]) -> Encoded:
    return encode_block(_worker_tokenizer, block)
