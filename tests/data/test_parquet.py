"""Parquet files: every row once, in constant memory, and one line for each mistake."""

import io
import tarfile
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrec_jax.config import DataConfig
from mmrec_jax.data.sources import open_corpus
from mmrec_jax.data.sources.file_tree import File
from mmrec_jax.data.sources.parquet import read_parquet
from mmrec_jax.errors import UserError

TEXTS = [f"row {i} ş\n" * (i % 7) for i in range(1000)]


def write(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=130)
    return path


def documents(path, **values):
    data = DataConfig(source="parquet", path=str(path), **values)
    pieces = [piece for part in open_corpus(data).parts for piece in part.pieces()]
    assert all(piece.begins for piece in pieces)
    return [piece.text for piece in pieces]


def test_every_row_with_text_is_a_document(tmp_path):
    expected = [text for text in TEXTS if text]
    write(tmp_path / "a.parquet", body=TEXTS, number=range(1000))
    write(tmp_path / "b.parquet", body=pa.array(["x", None, "y"], pa.large_string()))
    (tmp_path / "readme.md").write_text("not a table")
    assert documents(tmp_path, field="body") == [*expected, "x", "y"]
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.add(tmp_path / "b.parquet", "b.parquet")
    assert documents(tmp_path / "c.tar", field="body") == ["x", "y"]


def test_rows_are_read_as_they_are_needed(tmp_path):
    """Memory does not grow with the file: the first rows need few of its bytes."""
    path = write(tmp_path / "a.parquet", text=[str(i) * 1000 for i in range(20_000)])
    read, raw_read = [0], io.FileIO.readinto

    class Counting(io.FileIO):
        def readinto(self, buffer):
            read[0] += (count := raw_read(self, buffer))
            return count

    file = File(PurePosixPath("a.parquet"), "a", lambda: io.BufferedReader(Counting(path)))
    pieces = read_parquet(file, "text")
    assert next(pieces).text == "0" * 1000
    assert read[0] < path.stat().st_size / 4


@pytest.mark.parametrize(
    ("columns", "fragment"),
    [
        ({"body": ["a"], "id": [1]}, "no column 'text'; it has 'body', 'id'; choose one with"),
        ({"text": [1, 2]}, "column 'text' holds int64, not text"),
        ({"text": ["", ""]}, "has no text in column 'text'"),
    ],
)
def test_a_column_without_text_is_refused(tmp_path, columns, fragment):
    path = write(tmp_path / "a.parquet", **columns)
    with pytest.raises(UserError) as error:
        documents(path)
    assert f"{path}" in str(error.value)
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", text=TEXTS)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], b"x" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"cannot read {path}: ") as error:
            documents(path)
        assert "\n" not in str(error.value)
