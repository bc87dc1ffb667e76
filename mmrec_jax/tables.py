"""The tables that commands print."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Column, Table


def print_table(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    texts: int = 1,
    framed: bool = False,
    **options,
) -> None:
    """Prints a table.

    Args:
        names: the heads of its columns.
        rows: an empty one stands for a line between the rows around it.
        texts: the number of columns on the left that hold texts, not right-aligned numbers.
        framed: whether lines surround the table and separate its columns.
        options: of `rich.table.Table`.
    """
    columns = [
        Column(name, justify="left" if index < texts else "right", no_wrap=index < texts)
        for index, name in enumerate(names)
    ]
    table = Table(*columns, box=box.HEAVY_HEAD if framed else box.SIMPLE_HEAD, **options)
    for row in rows:
        if row:
            table.add_row(*row)
        else:
            table.add_section()
    Console().print(table)
