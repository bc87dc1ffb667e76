"""Compares the losses of several runs on the same text: a table, eval.json and a plot."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from mmrec_jax.data.batches import SplitWindows, TextWindows
from mmrec_jax.data.dataset import Split
from mmrec_jax.errors import UserError
from mmrec_jax.files import check_writable, write_text
from mmrec_jax.learning.breakdown import Breakdown
from mmrec_jax.report.drawing import draw
from mmrec_jax.report.evaluation import (
    about_intervals,
    interval_text,
    read_subject,
    text_windows,
)
from mmrec_jax.report.plots import plot_distances
from mmrec_jax.runs.workdir import Run, open_run, run_names
from mmrec_jax.tables import print_table
from mmrec_jax.waiting import waiting

HEADS = {  # of the table's sections
    "total": "complete text",
    "position": "tokens of context",
    "token": "since the same token",
    "pair": "since the same pair",
}
BLOCK = 1 << 20  # tokens that are read at once to compare two splits


def compare_losses(
    paths: Sequence[Path], checkpoint: str, split_name: str, text: Path | None, output: Path
) -> dict:
    """Evaluates several runs with carried memory and compares each with the first.

    All runs read the same text in the same lanes, those of the first run, so that every prediction
    has the same context in each run.

    Args:
        paths: two or more workdirs.
        checkpoint, split_name, text: as for `evaluation.evaluate_run`.
        output: the folder in which to write eval.json and loss_by_distance.png.

    Returns:
        The contents of eval.json.

    Raises:
        UserError: a workdir, checkpoint or the text is missing, the runs have different tokenizers
            or different splits, or the output cannot be written.
    """
    names = run_names(paths)
    if len(set(names)) < len(names):
        raise UserError("--workdir names the same run twice; name different runs")
    runs = [open_run(path) for path in paths]
    for run in runs:
        run.checkpoints.resolve(checkpoint)
    texts = _same_text(runs, split_name, text)
    try:
        output.mkdir(parents=True, exist_ok=True)
        check_writable(output)
    except OSError as error:
        message = f"cannot write to {output}: {error.strerror}; use another --output"
        raise UserError(message) from error
    facts, breakdowns = [], []
    for run, of_run in zip(runs, texts, strict=True):
        with waiting(f"evaluating {run.path}"):
            subject = read_subject(run, checkpoint)  # one at a time is in memory
            result = subject.evaluate(of_run, carry_memory=True)
        facts.append({**subject.facts(), **result.to_dict()})
        breakdowns.append(result.breakdown)
    sections = {kind: _rows(breakdowns, kind) for kind in HEADS}
    values = {
        "text": str(text) if text else f"{split_name} split",
        "carried_memory": True,
        "documents": breakdowns[0].documents,
        "runs": facts,
        "total": sections.pop("total")[0],
        **{f"by_{kind}": rows for kind, rows in sections.items()},
    }
    title = (
        f"{values['text']}, {checkpoint} checkpoints, carried memory; differences: minus {names[0]}"
    )
    _print(names, breakdowns, title)
    write_text(output / "eval.json", json.dumps(values, indent=2) + "\n")
    curves = dict(zip(names, breakdowns, strict=True))
    reaches = {name: of["seen_tokens"] for name, of in zip(names, facts, strict=True)}
    draw(output / "loss_by_distance.png", plot_distances, curves, reaches)
    print(f"wrote {output / 'eval.json'} and {output / 'loss_by_distance.png'}")
    return values


def _same_text(
    runs: list[Run], split_name: str, text: Path | None
) -> list[SplitWindows | TextWindows]:
    """The text of each run, after checking that they are equal."""
    first, *others = runs
    for run in others:
        if run.tokenizer.to_json() != first.tokenizer.to_json():
            raise UserError(
                f"{run.path} and {first.path} have different tokenizers, so their losses per token "
                "cannot be compared; evaluate each run by itself and compare bits per byte"
            )
    if text is not None:
        next(iter(text_windows(first, text)))  # raises an error if there is nothing to read
        return [text_windows(run, text) for run in runs]
    splits = [run.split(split_name) for run in runs]
    for run, split in zip(others, splits[1:], strict=True):
        if _digest(split) != _digest(splits[0]):
            raise UserError(
                f"the {split_name} splits of {run.path} and {first.path} differ; "
                "use --text=FILE to compare the runs on one text"
            )
    lengths = [run.config.train.seq_len for run in runs]
    lanes, shared = first.config.train.eval_batch_size, math.lcm(*lengths)
    return [
        SplitWindows(split, lanes, length, shared // length)
        for split, length in zip(splits, lengths, strict=True)
    ]


def _digest(split: Split) -> bytes:
    """A hash of everything that is predicted, and of where documents begin."""
    digest = hashlib.sha256()
    for start in range(0, split.num_tokens, BLOCK):
        for values in split.tokens.read(start, min(start + BLOCK, split.num_tokens)):
            digest.update(values.tobytes())
    if split.answers is not None:
        digest.update(split.answers.tobytes())
    return digest.digest()


def _rows(breakdowns: list[Breakdown], kind: str) -> list[dict]:
    """The buckets of a kind for eval.json; the differences are those to the first run."""
    first = breakdowns[0]
    losses = zip(*(of.buckets(kind) for of in breakdowns), strict=True)
    differences = zip(*(of.buckets(kind, minus=first) for of in breakdowns), strict=True)
    return [
        {
            "first": of_runs[0].first,
            "last": of_runs[0].last,
            "tokens": of_runs[0].tokens,
            "runs": [
                {
                    "loss": loss.loss,
                    "interval": loss.interval,
                    "difference": difference.loss,
                    "interval_of_difference": difference.interval,
                }
                for loss, difference in zip(of_runs, to_first, strict=True)
            ],
        }
        for of_runs, to_first in zip(losses, differences, strict=True)
    ]


def _print(names: list[str], breakdowns: list[Breakdown], title: str) -> None:
    first, *others = breakdowns
    heads, rows = ["loss by", "", "tokens", names[0]], []
    for name in names[1:]:
        heads += [name, "difference", "95% interval"]
    for kind, section in HEADS.items():
        rows.append(())
        columns = [(of.buckets(kind), of.buckets(kind, minus=first)) for of in others]
        for index, bucket in enumerate(first.buckets(kind)):
            name = "" if kind == "total" else bucket.name
            cells = [section, name, f"{bucket.tokens:,}", f"{bucket.loss:.4f}"]
            for losses, differences in columns:
                difference = differences[index]
                cells += [f"{losses[index].loss:.4f}", f"{difference.loss:+z.4f}"]
                cells.append(interval_text(difference.interval))
            rows.append(cells)
            section = ""
    print_table(heads, rows, texts=2, framed=True, wide=True, title=title)
    print(about_intervals(first))
