"""Output of training: a progress bar in a terminal, plain lines elsewhere, epochs as a table."""

import collections
import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_COLUMNS = (
    ("epoch", "d", 5),
    ("steps", "d", 6),
    ("first", ".4f", 8),
    ("last", ".4f", 8),
    ("mean", ".4f", 8),
    ("min", ".4f", 8),
    ("max", ".4f", 8),
    ("change %", "+.1f", 9),
    ("val loss", ".4f", 9),
    ("perplexity", ".3f", 11),
    ("accuracy", ".4f", 9),
    ("tokens/s", ",.0f", 9),
    ("seconds", ".1f", 8),
)


SHOWN_EPOCHS = 5  # in a terminal
_FIRST_TO_GO = ("min", "max", "seconds", "first", "last", "steps", "change %", "accuracy")
_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 60


class Display:
    """Prints the progress of a run.

    In a terminal, the bottom of the screen shows the last epochs as a table, the training loss as
    a curve, and a progress bar. Elsewhere plain lines are printed, which suit a log file.
    """

    def __init__(
        self, total_steps: int, first_step: int, log_every: int, epochs: Sequence[dict] = ()
    ):
        """`epochs`: rows of the epochs that earlier processes have shown."""
        self._console = Console()
        self._total, self._log_every = total_steps, log_every
        self._header_printed = False
        self._epochs = collections.deque(epochs, maxlen=SHOWN_EPOCHS)
        self._losses, self._live = Means(), None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("loss {task.fields[loss]}  rate {task.fields[rate]}"),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task(
                "", total=total_steps, completed=first_step, loss="-", rate="-", speed="-"
            )
            self._live = Live(
                console=self._console, get_renderable=self._screen, refresh_per_second=4
            )
            self._live.start()

    def _screen(self) -> Group:
        parts = []
        if self._epochs:
            parts.append(epoch_table(self._epochs, self._console.width))
        if len(self._losses.values) > 1:
            losses = binned(self._losses.values, min(_CURVE_WIDTH, self._console.width - 24))
            parts.append(Text(f"{max(losses):8.4f} {curve(losses)} {losses[-1]:.4f}"))
        return Group(*parts, self._progress)

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        if self._live is None:
            print(text, flush=True)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, step: int, loss: float, rate: float, seconds: float, speed: str) -> None:
        """Shows a finished step: loss, learning rate, mean seconds per step, and speed in words."""
        if self._live is not None:
            self._losses.add(loss)
            self._progress.update(
                self._task,
                completed=step,
                loss=f"{loss:.4f}",
                rate=f"{rate:.2e}",
                speed=speed,
            )
        elif step % self._log_every == 0:
            print(
                f"step {step}/{self._total}  loss {loss:.4f}  rate {rate:.2e}  "
                f"{speed}  {(self._total - step) * seconds:.0f} s left",
                flush=True,
            )

    def epoch_row(self, values: dict[str, Any]) -> None:
        """Adds a row to the table of epochs; `values` has a value for each column."""
        self._epochs.append(values)
        if self._live is not None:
            return
        if not self._header_printed:
            self.say("  ".join(f"{name:>{width}}" for name, _, width in _COLUMNS))
            self._header_printed = True
        self.say(
            "  ".join(format(values[name], spec).rjust(width) for name, spec, width in _COLUMNS)
        )

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        sys.stdout.flush()


class Means:
    """Means of a long series over stretches of equal length, in constant memory."""

    def __init__(self, most: int = 1024):
        """`most`: that many means, an even number, become half as many."""
        self.values: list[float] = []
        self._most, self._length = most, 1
        self._total, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._total += value
        self._count += 1
        if self._count == self._length:
            self.values.append(self._total / self._count)
            self._total, self._count = 0.0, 0
        if len(self.values) == self._most:
            pairs = zip(self.values[::2], self.values[1::2], strict=True)
            self.values = [(one + other) / 2 for one, other in pairs]
            self._length *= 2


def epoch_table(epochs: Iterable[dict], width: int) -> Table:
    """Epochs as a table no wider than the terminal; drops the least important columns first."""
    columns = list(_COLUMNS)
    for name in _FIRST_TO_GO:
        if sum(column[2] + 1 for column in columns) > width:
            columns = [column for column in columns if column[0] != name]
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name, _, least in columns:
        table.add_column(name, justify="right", min_width=least, no_wrap=True)
    for values in epochs:
        table.add_row(*(format(values[name], spec) for name, spec, _ in columns))
    return table


def binned(values: Sequence[float], most: int) -> list[float]:
    """Means over stretches of equal length, at most `most` of them."""
    edges = [len(values) * index // most for index in range(most + 1)]
    stretches = [values[first:last] for first, last in itertools.pairwise(edges)]
    return [sum(stretch) / len(stretch) for stretch in stretches if stretch]


def curve(values: Sequence[float]) -> str:
    """A curve as one line of text, scaled from the lowest value to the highest."""
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in values)
