"""Reads the log of a run (metrics.jsonl), and derives its status and a verdict on its fit."""

from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrec_jax.runs.metrics import read_lines
from mmrec_jax.runs.workdir import is_training

_COLUMNS = (
    "step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "data_seconds",
)  # fmt: skip


class RunLog(NamedTuple):
    """The lines of metrics.jsonl by kind, in order."""

    train: dict[str, np.ndarray]  # one array per number logged at each step
    evaluations: list[dict]
    epochs: list[dict]
    events: list[dict]


def read_log(workdir: Path) -> RunLog:
    """Reads metrics.jsonl, which may be missing."""
    columns = {name: array("d") for name in _COLUMNS}
    others: dict[str, list[dict]] = {"evaluation": [], "epoch": [], "event": []}
    for line in read_lines(workdir):
        if line.get("kind") == "train":
            for name, column in columns.items():
                column.append(line.get(name, np.nan))
        elif line.get("kind") in others:
            others[line["kind"]].append(line)
    train = {name: np.array(column) for name, column in columns.items()}
    return RunLog(train, others["evaluation"], others["epoch"], others["event"])


class Status(NamedTuple):
    """The status of a run."""

    text: str
    tone: str = ""  # good or bad; "" for neither


def read_status(log: RunLog, workdir: Path, finished: str = "") -> Status:
    """The status of a run, in whose folder a process may be training right now.

    `finished` is why it finished, according to its last checkpoint; "" if it has not.
    """
    last = int(log.train["step"][-1]) if len(log.train["step"]) else 0
    starts = [event for event in log.events if event["event"] in ("started", "resumed")]
    total = starts[-1].get("total_steps") if starts else None
    of_total = f"step {last:,}" + (f" of {total:,}" if total else "")
    event = log.events[-1] if log.events else {"event": "", "step": 0}
    reason = event.get("reason", "")
    if event["event"] == "diverged":
        return Status(f"Diverged at step {event['step']:,}: {reason}.", "bad")
    if event["event"] == "stopped early":
        return Status(f"{reason[:1].upper()}{reason[1:]}.")
    if event["event"] == "finished" or finished:
        return Status(f"Finished: {reason or finished}.", "good")
    if is_training(workdir):
        return Status(f"Running: {of_total}.")
    if event["event"] == "interrupted" and event["step"] >= last:
        return Status(f"Interrupted by {reason} after {of_total}; state saved.")
    if not last:
        return Status("No step has been recorded yet.")
    return Status(f"Ended unexpectedly after {of_total}: killed, or the machine stopped.", "bad")


class GapRow(NamedTuple):
    """An evaluation, with the training steps since the previous one."""

    step: int
    training: float  # mean loss of those steps
    validation: float

    @property
    def gap(self) -> float:
        return self.validation - self.training


OVERFITTING = 0.02  # relative rise of validation loss above its best that counts as overfitting
FLAT = 0.005  # a loss that has fallen by less than this share counts as flat
RULE = (
    f"Overfitting: the last validation loss is more than {OVERFITTING:.0%} above the best, and "
    "training loss has kept falling since then. Plateau: over the last third of the "
    f"evaluations, neither loss has fallen by {FLAT:.1%}. Fitting: anything else. Training loss is "
    "the mean over the steps since the previous evaluation, with dropout; evaluations do not use "
    "dropout."
)


def gap_rows(log: RunLog) -> list[GapRow]:
    """Training and validation loss side by side, one row per evaluation."""
    steps, losses = log.train["step"], log.train["loss"]
    rows, before = [], 0
    for line in log.evaluations:
        since = losses[(steps > before) & (steps <= line["step"])]
        if len(since):
            rows.append(GapRow(line["step"], float(since.mean()), line["loss"]))
            before = line["step"]
    return rows


def _change(before: float, after: float) -> float:
    """The relative change of a loss; 0 from one of 0, which short answers can have."""
    return after / before - 1 if before else 0.0


def judge(rows: list[GapRow], steps_per_epoch: int = 0) -> tuple[str, str]:
    """The verdict according to RULE, and advice that follows from it.

    Args:
        rows: from `gap_rows`.
        steps_per_epoch: for naming epochs as well as steps; 0 if unknown.
    """

    def since(row: GapRow) -> str:
        epoch = f"epoch {-(-row.step // steps_per_epoch)}, " if steps_per_epoch else ""
        return f"since {epoch}step {row.step:,}"

    if len(rows) < 2:
        return "Too early to tell: fewer than two evaluations.", ""
    best, last = min(rows, key=lambda row: row.validation), rows[-1]
    risen = _change(best.validation, last.validation)
    if risen > OVERFITTING and last.training < best.training:
        return (
            f"Overfitting {since(best)}: validation loss is {risen:.1%} above its best, "
            f"{best.validation:.4f}, while training loss kept falling.",
            "Use the best checkpoint. For a better one, try more text, more dropout or a smaller "
            "model; train.patience ends training in time.",
        )
    first = rows[-max(len(rows) // 3 + 1, 2)]  # of the last third
    validation_fell = -_change(first.validation, last.validation)
    training_fell = -_change(first.training, last.training)
    if max(validation_fell, training_fell) < FLAT:
        return (
            f"Plateau: {since(first)}, validation loss has fallen by {max(validation_fell, 0):.2%} "
            f"and training loss by {max(training_fell, 0):.2%}.",
            "Training longer will not help. Try another learning rate, a larger model "
            "(config.init_from grows this one), or more text.",
        )
    if risen > OVERFITTING:
        return (
            f"Fitting, but validation loss is {risen:.1%} above its best at step {best.step:,}.",
            "Watch the next evaluations.",
        )
    return (
        f"Fitting: validation loss {last.validation:.4f}, {last.gap:+.4f} relative to training "
        "loss, with no lasting rise.",
        "Training longer may still help."
        if validation_fell >= FLAT
        else "Validation loss is nearly flat: a larger model or more text would help more.",
    )
