"""Gives each reader thousands of damaged files: it reads them or refuses them, and does no more.

    python -m benchmarks.fuzz
    python -m benchmarks.fuzz --reader=tokenizer --first=17 --count=1    # repeats one case

A case is a file that a run, a corpus or a session really has, changed at random: bits, pieces, and
values of JSON; its number is the seed. Checksums are left out or made anew, so that the readers
behind them see the damage. A case passes if the reader returns, or raises an error for the user
(`UserError` or `Damaged`), within LONGEST seconds and MEMORY bytes more than before, and opens no
file outside of the case's folder, starts no process and connects to nothing. Readers run in
processes of their own, which are started again after a crash.
"""

import collections
import contextlib
import gzip
import io
import json
import lzma
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags

from mmrec_jax import checksums
from mmrec_jax.checksums import Damaged
from mmrec_jax.commands import cli
from mmrec_jax.errors import UserError
from mmrec_jax.tables import print_table

LONGEST, MEMORY = 20, 2**31
TEXT = "It was the best of times,\nit was the worst of times.\n" * 40
STRANGE = (
    None, True, -1, 0, 2**31, 2**63, 10**30, 1.5, 1e308, "", "x" * 1000, "../../etc/passwd", [], {},
    [[]], {"a": None}, "\ud800", "\x1b[31m<script>",
)  # fmt: skip


class Reader(NamedTuple):
    """What is read, and how."""

    prepare: Callable[[Path], None]  # makes the files in a folder
    files: tuple[str, ...]  # patterns of those to damage
    read: Callable[[Path], object]
    share: float = 1.0  # of --count: the slower ones have fewer cases


# --- what is read ---


def _run(folder: Path) -> None:
    """A workdir, trained for two steps."""
    from configs import tiny
    from mmrec_jax.config import from_mapping
    from mmrec_jax.training.loop import train

    config = tiny.get_config()
    small = {"vocab_size": 64, "dim": 16, "num_layers": 1, "num_heads": 2, "chunk_len": 8}
    config.model.update({**small, "short_term": 8, "long_term": 4})
    config.data.sample_chars = 2000
    config.train.update({"seq_len": 32, "num_steps": 2, "warmup_steps": 1})
    with contextlib.redirect_stdout(io.StringIO()):
        train(from_mapping(config), folder / "run")


def _config(folder: Path):
    from mmrec_jax.runs.workdir import read_config

    return read_config(folder / "run")


def _data(folder: Path):
    from mmrec_jax.runs.workdir import read_data

    return read_data(folder / "run")


def _tokenizers(folder: Path) -> None:
    from mmrec_jax.data.tokenizers import (
        ByteTokenizer,
        CharTokenizer,
        SubwordTokenizer,
        WordTokenizer,
    )

    for name, tokenizer in {
        "char": CharTokenizer.train([TEXT], 64),
        "byte": ByteTokenizer(),
        "bpe": SubwordTokenizer.train([TEXT], 280),
        "word": WordTokenizer(["it", "was", "best"]),
    }.items():
        (folder / f"{name}.json").write_text(tokenizer.to_json())


def _tokenizer(folder: Path):
    from mmrec_jax.data.tokenizers import load_tokenizer

    for path in folder.glob("*.json"):
        tokenizer = load_tokenizer(path)
        tokenizer.decode(tokenizer.encode("it was \n the Worst"))


def _tokens(folder: Path):
    from mmrec_jax.data.token_cache import open_prepared

    prepared = open_prepared(folder / "run/data")
    for split in prepared.splits.values():
        split.tokens.read(0, min(split.counts.tokens, 10_000))


def _log(folder: Path):
    from mmrec_jax.report.run_log import gap_rows, judge, read_log, read_status

    with contextlib.redirect_stderr(None):
        log = read_log(folder / "run")
    read_status(log, folder / "run")
    judge(gap_rows(log), 10)


def _checkpoint(folder: Path):
    from mmrec_jax.model.params import param_shapes
    from mmrec_jax.runs.checkpoints import Checkpoints

    shapes = param_shapes(_config(folder).model)
    checkpoints = Checkpoints(folder / "run/checkpoints", read_only=True)
    step = checkpoints.resolve("best")
    checkpoints.progress(step)
    checkpoints.restore_params(step, shapes)


def _session_file(folder: Path) -> None:
    _run(folder)
    import mmrec_jax

    session = mmrec_jax.load(folder / "run").session()
    session.read("It was")
    session.save(folder / "session")


def _session(folder: Path):
    import mmrec_jax

    if "lm" not in _kept:
        _kept["lm"] = mmrec_jax.load(folder / "run")
    _kept["lm"].session(folder / "session")


_kept: dict = {}  # by a reader, from one case to the next


def _texts(folder: Path) -> None:
    data = TEXT.encode()
    (folder / "a.txt").write_bytes(data)
    (folder / "a.txt.gz").write_bytes(gzip.compress(data))
    (folder / "a.txt.xz").write_bytes(lzma.compress(data))
    import zstandard

    (folder / "a.txt.zst").write_bytes(zstandard.compress(data))
    for suffix in ("tar", "tar.gz", "tar.xz"):
        mode = "w" if suffix == "tar" else f"w:{suffix[4:]}"
        with tarfile.open(folder / f"a.{suffix}", mode) as archive:
            archive.add(folder / "a.txt", "books/a.txt")
            archive.add(folder / "a.txt.gz", "books/b.txt.gz")


def _rows(folder: Path) -> None:
    lines = [json.dumps({"text": line}) for line in TEXT.splitlines()]
    (folder / "a.jsonl").write_text("\n".join(lines))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": TEXT.splitlines()}), folder / "a.parquet")


def _dataset(folder: Path) -> None:
    from mmrec_jax.commands.tfds_builder import make_builder
    from mmrec_jax.config import DataConfig
    from mmrec_jax.data.sources.tfds import quietly

    _texts(folder)
    with quietly():
        data = DataConfig(source="text", path=str(folder / "a.txt"), test_fraction=0.1)
        make_builder("fuzz", "1.0.0", data, str(folder)).download_and_prepare()


def _tfds(folder: Path) -> None:
    from mmrec_jax.config import DataConfig
    from mmrec_jax.data.sources import open_corpus

    data = DataConfig(source="tfds", tfds_name="fuzz", tfds_dir=str(folder))
    for part in open_corpus(data).parts:
        collections.deque(part.pieces(), maxlen=0)


def _corpus(source: str, pattern: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from configs import tiny
        from mmrec_jax.config import from_mapping
        from mmrec_jax.data.sources import open_corpus

        config = tiny.get_config()
        config.data.update({"source": source, "path": str(folder / pattern)})
        for part in open_corpus(from_mapping(config).data).parts:
            collections.deque(part.pieces(), maxlen=0)

    return read


READERS = {
    "config": Reader(_run, ("run/config.json",), _config),
    "data": Reader(_run, ("run/data.json",), _data),
    "tokenizer": Reader(_tokenizers, ("*.json",), _tokenizer),
    "tokens": Reader(_run, ("run/data/index.json", "run/data/*record"), _tokens),
    "log": Reader(_run, ("run/metrics.jsonl",), _log),
    "session": Reader(_session_file, ("session",), _session),
    "checkpoint": Reader(_run, ("run/checkpoints/2/**/*",), _checkpoint, 0.1),
    "text": Reader(_texts, ("a.txt",), _corpus("text", "a.txt")),
    "compressed": Reader(_texts, ("a.txt.*",), _corpus("text", "a.txt.*")),
    "archive": Reader(_texts, ("a.tar*",), _corpus("text", "a.tar*")),
    "jsonl": Reader(_rows, ("a.jsonl",), _corpus("jsonl", "a.jsonl")),
    "tfds": Reader(_dataset, ("fuzz/1.0.0/*",), _tfds, 0.5),
    "parquet": Reader(_rows, ("a.parquet",), _corpus("parquet", "a.parquet")),
}
_READER = flags.DEFINE_multi_enum("reader", list(READERS), list(READERS), "Readers to try.")
_COUNT = flags.DEFINE_integer("count", 2_000, "Cases of a fast reader.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first", 0, "Number of the first case.", lower_bound=0)
_WORKER = flags.DEFINE_string("worker", None, "The folder of the files; only for internal use.")


# --- damage ---


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Other bytes: those of a JSON object with another value, or with pieces changed."""
    if rng.random() < 0.5:
        with contextlib.suppress(ValueError, UnicodeDecodeError, IndexError):
            lines = data.decode().splitlines() if data.count(b"\n{") else [data.decode()]
            index = rng.randrange(len(lines))
            values = json.loads(lines[index])
            values.pop("checksum", None)
            _change(rng, values)
            lines[index] = json.dumps(values)
            return "\n".join(lines).encode() + b"\n"
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 2, 4, 16, 256)))
        match rng.randrange(6):
            case 0 if start < len(data):
                data[start] ^= 1 << rng.randrange(8)
            case 1:
                data[start:end] = rng.randbytes(end - start)
            case 2:
                del data[start:end]
            case 3:
                data[start:start] = data[start:end] * rng.choice((1, 2, 50))
            case 4:
                del data[start:]
            case _:
                data[start:end] = rng.choice((b"\0", b"\xff")) * (end - start)
    return bytes(data)


def _change(rng: random.Random, values) -> None:
    """Puts something strange in a random place of a JSON value."""
    while True:
        keys = list(values) if isinstance(values, dict) else range(len(values))
        key = rng.choice(keys)
        inner = values[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            values = inner
            continue
        match rng.randrange(4):
            case 0 if isinstance(values, dict):
                del values[key]
            case 1 if isinstance(values, dict):
                values[rng.choice(("", "extra", "../x"))] = inner
            case _:
                values[key] = rng.choice(STRANGE)
        return


# --- a worker ---


def work(reader: Reader, folder: Path, first: int, count: int) -> None:
    """Runs cases, and prints the number of each before it and its outcome after it."""
    out = os.fdopen(os.dup(1), "w", buffering=1)  # for nobody but this function
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    files = sorted({x for pattern in reader.files for x in folder.glob(pattern) if x.is_file()})
    for seal in folder.rglob(checksums.OF_FOLDER):
        seal.unlink()
    reader.read(folder)  # imports everything
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    watched = _watch(folder)
    for number in range(first, first + count):
        rng = random.Random(number)
        path = rng.choice([path for path in files if path.exists()])
        whole = path.read_bytes()
        path.unlink()  # it may be a hard link
        path.write_bytes(damaged(rng, whole))
        print(number, file=out)
        signal.alarm(LONGEST)
        watched.clear()
        try:
            with _watching():
                reader.read(folder)
            outcome = "read"
        except (UserError, Damaged) as error:
            outcome = "refused" if "\n" not in str(error) else "refused in several lines"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        if watched:
            outcome = f"opened {watched[0]}"
        path.write_bytes(whole)
        print(json.dumps([path.name, outcome]), file=out)


_is_watching = False


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    global _is_watching
    _is_watching = True
    try:
        yield
    finally:
        _is_watching = False


def _watch(folder: Path) -> list[str]:
    """A list of what a reader does that it should not, from now on."""
    allowed = (str(folder), sys.prefix, sys.base_prefix, str(Path.cwd()), "/proc/", "/sys/")
    found = []

    def hook(event: str, arguments: tuple) -> None:
        if not _is_watching:
            return
        if event in ("open", "os.remove", "os.rename", "os.mkdir"):
            path = arguments[0]
            if isinstance(path, (str, bytes)):
                path = path.decode() if isinstance(path, bytes) else path
                if path.startswith("/") and not path.startswith(allowed):
                    found.append(path)
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "socket.connect"):
            found.append(event)

    sys.addaudithook(hook)
    return found


# --- the table ---


def main():
    if _WORKER.value:
        (name,) = _READER.value
        work(READERS[name], Path(_WORKER.value), _FIRST.value, _COUNT.value)
        return
    rows, failures = [], []
    for name in _READER.value:
        reader, start = READERS[name], time.perf_counter()
        count = max(1, round(_COUNT.value * reader.share))
        outcomes, failed = _try(name, reader, count)
        seconds = time.perf_counter() - start
        rows.append((name, *(f"{x:,}" for x in (count, *outcomes, len(failed))), f"{seconds:.0f}"))
        failures += failed
        for failure in failed[:5]:
            print(failure, flush=True)
    print_table(("reader", "cases", "read", "refused", "failed", "seconds"), rows)
    if failures:
        raise UserError(f"{len(failures):,} cases failed")


def _try(name: str, reader: Reader, count: int) -> tuple[tuple[int, int], list[str]]:
    """How many cases were read, and refused; and what happened in the others."""
    number, outcomes, failed = _FIRST.value, collections.Counter(), []
    end = number + count
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made")
        made.mkdir()
        reader.prepare(made)
        while number < end:
            files = Path(folder, "files")
            shutil.rmtree(files, ignore_errors=True)
            shutil.copytree(made, files)
            command = [sys.executable, "-m", "benchmarks.fuzz", f"--reader={name}"]
            command += [f"--worker={files}", f"--first={number}", f"--count={end - number}"]
            worker = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = worker.stdout.splitlines()
            for case, line in zip(lines[::2], lines[1::2], strict=False):
                file, outcome = json.loads(line)
                outcomes[outcome] += 1
                if outcome not in ("read", "refused"):
                    failed.append(f"{name} {case} ({file}): {outcome[:300]}")
            if not lines:
                raise UserError(f"the reader {name} cannot be run: {worker.stderr[-300:]}")
            number = int(lines[-1 if len(lines) % 2 else -2]) + 1
            if len(lines) % 2:
                failed.append(f"{name} {number - 1}: ended with {worker.returncode}")
    return (outcomes["read"], outcomes["refused"]), failed


if __name__ == "__main__":
    cli.run(main, cached=False)
