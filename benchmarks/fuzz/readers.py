"""What reads files that a run, a corpus or a session has, and such files."""

import collections
import contextlib
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TEXT = "It was the best of times,\nit was the worst of times.\n" * 40


class Reader(NamedTuple):
    """What is read, and how."""

    prepare: Callable[[Path], None]  # makes the files in a folder
    files: tuple[str, ...]  # patterns of those to damage
    read: Callable[[Path], object]
    share: float = 1.0  # of --count: the slower ones have fewer cases


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
