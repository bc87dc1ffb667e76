"""Reads the numbers that a run has logged in metrics.jsonl."""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmrec_jax import checksums
from mmrec_jax.checksums import Damaged
from mmrec_jax.files import regular


def read_lines(workdir: Path) -> Iterator[dict]:
    """The lines of metrics.jsonl, which may be missing, without those that are damaged.

    If there are such lines, that is said on standard error.
    """
    path, damaged = workdir / "metrics.jsonl", []
    for number, line in _numbered(path):
        if line is None:
            damaged.append(number)
        else:
            yield line
    if damaged:
        lines = "line" if len(damaged) == 1 else f"{len(damaged):,} lines, the first of them"
        print(f"{path}: {lines} {damaged[0]:,} is damaged and left out", file=sys.stderr)


def last_lines(workdir: Path, num_bytes: int) -> list[dict]:
    """The lines in the last bytes of metrics.jsonl, which may be missing, without damaged ones."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    with regular(path).open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - num_bytes)
        file.seek(start)
        texts = file.read().splitlines(keepends=True)[bool(start) :]
    lines = _lines(text.decode(errors="replace") for text in texts)
    return [line for _, line in lines if line is not None]


def damaged_lines(workdir: Path) -> list[int]:
    """The numbers, from 1, of the damaged lines of metrics.jsonl."""
    return [number for number, line in _numbered(workdir / "metrics.jsonl") if line is None]


def _numbered(path: Path) -> Iterator[tuple[int, dict | None]]:
    """The lines with their numbers; None for a damaged one, except if it is half written."""
    with regular(path).open(errors="replace") if path.exists() else io.StringIO() as file:
        yield from _lines(file)


def _lines(texts: Iterable[str]) -> Iterator[tuple[int, dict | None]]:
    for number, text in enumerate(texts, 1):
        try:
            line = checksums.unsealed(text)
            if not _is_line(line):
                raise Damaged("it is not a line of a run")
            yield number, line
        except Damaged:
            if text.endswith("\n"):
                yield number, None


def _is_line(values: dict) -> bool:
    """Whether the values that other code relies on are there, and of their types."""
    kind, step = values.get("kind"), values.get("step")
    if not isinstance(kind, str) or type(step) is not int:
        return False
    if kind == "event":
        texts = (values.get("event"), values.get("reason", ""))
        counts = (values.get("total_steps", 0), values.get("steps_per_epoch", 0))
        return all(isinstance(x, str) for x in texts) and all(type(x) is int for x in counts)
    numbers = [value for key, value in values.items() if key != "kind"]
    if kind == "evaluation":  # has figures that are not known of every text
        numbers = [value for value in numbers if value is not None]
    are_numbers = all(type(x) is float or (type(x) is int and abs(x) < 2**63) for x in numbers)
    return are_numbers and (kind == "epoch" or values.get("loss") is not None)


def read_metrics(workdir: Path, kind: str) -> list[dict]:
    """The lines of one kind ("train", "evaluation", "epoch", "event") in metrics.jsonl."""
    return [line for line in read_lines(workdir) if line.get("kind") == kind]
