"""Parquet files: one document per row, read in constant memory."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from mmrec_jax.data.corpus import Piece
from mmrec_jax.data.sources.file_tree import File
from mmrec_jax.errors import UserError

ROWS = 64  # rows per read
BUFFER = 2**20  # bytes per read of a column


def read_parquet(source: File, field: str) -> Iterator[Piece]:
    """One document per row of a file: the string in one column. Rows without text are left out.

    Raises:
        UserError: the file cannot be read, has no such column, or no text in it.
    """
    empty = True
    try:
        with source.open() as file:
            table = pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
            _check_column(table.schema_arrow, field, source.where)
            for batch in table.iter_batches(ROWS, columns=[field]):
                for text in filter(None, batch.column(0).to_pylist()):
                    empty = False
                    yield Piece(text, begins=True)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {source.where}: {' '.join(str(error).split())}") from error
    if empty:
        raise UserError(f"{source.where} has no text in column {field!r}")


def _check_column(schema: pa.Schema, field: str, where: str) -> None:
    if field not in schema.names:
        has = ", ".join(map(repr, schema.names))
        raise UserError(
            f"{where} has no column {field!r}; it has {has}; choose one with data.field"
        )
    kind = schema.field(field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(
            f"{where}: column {field!r} holds {kind}, not text; choose another with data.field"
        )
