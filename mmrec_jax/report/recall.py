"""Recall accuracy by length of text: how long a trained model keeps facts in memory."""

import json
from pathlib import Path
from typing import NamedTuple

from mmrec_jax.data.sources import recall
from mmrec_jax.errors import UserError
from mmrec_jax.files import write_text
from mmrec_jax.learning.evaluate import state_bytes
from mmrec_jax.learning.recall import MULTIPLES, recall_accuracy
from mmrec_jax.report.drawing import draw
from mmrec_jax.report.plots import plot_recall
from mmrec_jax.runs.workdir import open_run
from mmrec_jax.tables import print_table


class RecallResult(NamedTuple):
    """Result of the recall suite for one run."""

    workdir: str
    step: int
    trained_length: int  # tokens
    state_bytes: int  # of the state per text, whatever its length
    questions: dict[str, int]  # by task: how often an answer is asked for at each length
    accuracy: dict[str, list[float]]  # by task: share of correct answers for each of `multiples`
    multiples: tuple[int, ...]  # lengths of the texts, as multiples of the trained length


def run_recall_suite(
    paths: list[Path], checkpoint: str, multiples: tuple[int, ...] = MULTIPLES
) -> list[RecallResult]:
    """Evaluates runs of configs/recall.py, prints tables, and writes recall.json and recall.png.

    Each workdir gets both files; the plot in the first one shows all runs.

    Raises:
        UserError: a workdir is missing, or its run was not trained on recall texts.
    """
    runs = [open_run(path) for path in paths]
    for run in runs:
        if run.config.data.source != "recall":
            raise UserError(
                f"{run.path} was trained on data.source {run.config.data.source!r}; the suite "
                "'recall' needs a run of configs/recall.py"
            )
    results = []
    for run in runs:
        step = run.checkpoints.resolve(checkpoint)
        questions, accuracy = recall_accuracy(run.config, run.params(step), multiples)
        result = RecallResult(
            workdir=str(run.path),
            step=step,
            trained_length=run.config.train.seq_len,
            state_bytes=state_bytes(run.config),
            questions=questions,
            accuracy=accuracy,
            multiples=multiples,
        )
        write_text(run.path / "recall.json", json.dumps(result._asdict(), indent=2) + "\n")
        draw(run.path / "recall.png", plot_recall, [result])
        _print_result(result)
        results.append(result)
    if len(results) > 1:
        draw(paths[0] / "recall.png", plot_recall, results)
    return results


def _print_result(result: RecallResult) -> None:
    lengths = [f"{x * result.trained_length:,}\n{x:,}x" for x in result.multiples]
    rows = []
    for task in recall.TASKS:
        shares = [*result.accuracy[task], recall.chance(task)]
        rows.append((task, *(f"{share:.1%}" for share in shares)))
    print_table(
        ("task", *lengths, "chance"),
        rows,
        framed=True,
        title=f"{result.workdir}: share of correct answers by length of the text in tokens\n"
        f"trained on {result.trained_length} tokens; state of {result.state_bytes:,} bytes",
    )
