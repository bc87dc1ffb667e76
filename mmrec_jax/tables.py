"""The one form of all tables that commands print."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Column, Table

WIDE = 160  # characters in a line of a wide table that is not printed on a terminal


def print_table(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    texts: int = 1,
    framed: bool = False,
    wide: bool = False,
    **options,
) -> None:
    """Prints a table.

    Args:
        names: the heads of its columns.
        rows: an empty one stands for a line between the rows around it.
        texts: the number of columns on the left that hold texts, not right-aligned numbers.
        framed: whether lines surround the table and separate its columns.
        wide: whether it may be wider than 80 characters in a file or a pipe.
        options: of `rich.table.Table`.
    """
    console = Console()
    if wide and not console.is_terminal:
        console.width = max(console.width, WIDE)
    console.print(_table(names, rows, texts, framed, options))


def table_text(
    names: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1, framed: bool = False
) -> str:
    """The table that `print_table` prints, as text."""
    console = Console(width=WIDE, color_system=None, force_jupyter=False)
    with console.capture() as captured:
        console.print(_table(names, rows, texts, framed, {}))
    lines = (line.rstrip() for line in captured.get().splitlines())
    return "\n".join(filter(None, lines))


def _table(names, rows, texts, framed, options) -> Table:
    columns = [
        Column(
            name,
            justify="left" if index < texts else "right",
            no_wrap=index < texts,
            overflow="fold",  # a long name of a run is complete, on several lines
        )
        for index, name in enumerate(names)
    ]
    table = Table(*columns, box=box.HEAVY_HEAD if framed else box.SIMPLE_HEAD, **options)
    for row in rows:
        if row:
            table.add_row(*row)
        else:
            table.add_section()
    return table
