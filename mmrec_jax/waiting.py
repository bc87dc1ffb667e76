"""Says what a command is waiting for: in a terminal with the seconds, elsewhere in a plain line."""

import contextlib
import sys
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PATIENCE = 1.5  # seconds after which a plain line is printed
_shown = False


def show_waiting() -> None:
    """Makes `waiting` show something from now on. Commands do this; libraries stay silent."""
    global _shown
    _shown = True


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows on standard error what is being done, while it is done.

    Nothing may be printed meanwhile.
    """
    console = Console(stderr=True)
    if not _shown:
        yield
    elif console.is_terminal:
        columns = SpinnerColumn(), TextColumn(what, markup=False), TimeElapsedColumn()
        options = {"transient": True, "redirect_stdout": False, "redirect_stderr": False}
        with Progress(*columns, console=console, **options) as progress:
            progress.add_task("")
            yield
    else:
        line = threading.Timer(PATIENCE, print, (what,), {"file": sys.stderr, "flush": True})
        line.start()
        try:
            yield
        finally:
            line.cancel()
