"""What training shows: a progress bar on a terminal, plain lines elsewhere, a table of epochs."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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


class Display:
    """Prints a run as it goes."""

    def __init__(self, total_steps: int, first_step: int, log_every: int):
        self._console = Console()
        self._total, self._log_every = total_steps, log_every
        self._header_printed = False
        self._progress = None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("loss {task.fields[loss]}  rate {task.fields[rate]}"),
                TextColumn("{task.fields[speed]} tokens/s"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task(
                "", total=total_steps, completed=first_step, loss="-", rate="-", speed="-"
            )
            self._progress.start()

    def say(self, text: str) -> None:
        """A line, above the bar where there is one."""
        if self._progress is None:
            print(text, flush=True)
        else:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, step: int, loss: float, rate: float, tokens: int, seconds: float) -> None:
        """Shows a step done: its loss and learning rate, and the tokens and mean seconds of one."""
        if self._progress is not None:
            self._progress.update(
                self._task,
                completed=step,
                loss=f"{loss:.4f}",
                rate=f"{rate:.2e}",
                speed=f"{tokens / seconds:,.0f}",
            )
        elif step % self._log_every == 0:
            print(
                f"step {step}/{self._total}  loss {loss:.4f}  rate {rate:.2e}  "
                f"{tokens / seconds:,.0f} tokens/s  {(self._total - step) * seconds:.0f} s left",
                flush=True,
            )

    def epoch_row(self, values: dict[str, Any]) -> None:
        """A row of the table, named as the columns."""
        if not self._header_printed:
            self.say("  ".join(f"{name:>{width}}" for name, _, width in _COLUMNS))
            self._header_printed = True
        self.say(
            "  ".join(format(values[name], spec).rjust(width) for name, spec, width in _COLUMNS)
        )

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        sys.stdout.flush()
