"""Evaluates a run: tables, eval.json, and plots of the loss by context and by distance."""

import json
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mmrec_jax.data.batches import Batch, SplitWindows, TextWindows
from mmrec_jax.data.sources.text_files import check_text, stream_text
from mmrec_jax.files import write_text
from mmrec_jax.learning.breakdown import DRAWS, FEWEST, Breakdown
from mmrec_jax.learning.evaluate import (
    EvalResult,
    empty_memory,
    evaluate,
    make_eval_step,
    state_bytes,
)
from mmrec_jax.learning.sharding import evaluation_mesh
from mmrec_jax.learning.step_time import with_recurrence
from mmrec_jax.model.interface import mmrec
from mmrec_jax.model.params import Params
from mmrec_jax.report.drawing import draw
from mmrec_jax.report.plots import plot_distances, plot_positions
from mmrec_jax.runs.workdir import Run, open_run
from mmrec_jax.tables import print_table
from mmrec_jax.waiting import waiting

TABLES = {  # kinds of buckets: the title of their table, and the head of its first column
    "position": ("loss by tokens of context", "context"),
    "token": ("loss by tokens since the same token last occurred", "distance"),
    "pair": ("loss by tokens since the same token last occurred after the same token", "distance"),
}


class Subject(NamedTuple):
    """A checkpoint of a run that is to be evaluated."""

    run: Run
    checkpoint: str
    step: int
    mesh: Mesh
    params: Params

    def facts(self) -> dict:
        """What eval.json says of the model."""
        return {
            "workdir": str(self.run.path),
            "checkpoint": self.checkpoint,
            "step": self.step,
            "parameters": sum(x.size for x in jax.tree.leaves(self.params)),
            "parameter_bytes": sum(x.nbytes for x in jax.tree.leaves(self.params)),
            "state_bytes": state_bytes(self.run.config),
            "seen_tokens": self.run.config.model.seen_tokens,
        }

    def evaluate(self, text: SplitWindows | TextWindows, carry_memory: bool) -> EvalResult:
        """The loss by distance too. Compiling is not timed."""
        eval_step = make_eval_step(with_recurrence(self.run.config, self.mesh).model)
        shape = text.batch_size, self.run.config.train.seq_len
        tokens, ones = np.zeros(shape, np.int32), np.ones(shape, np.float32)
        batch = Batch(tokens, tokens, tokens, ones, np.ones(text.batch_size, bool))
        with jax.set_mesh(self.mesh):
            memory = empty_memory(mmrec(self.run.config.model), text.batch_size)
            jax.block_until_ready(eval_step(self.params, batch, memory))
            return evaluate(eval_step, self.params, text, self.run.config, carry_memory, True)


def read_subject(run: Run, checkpoint: str) -> Subject:
    """Reads a checkpoint of a run: best, latest, final, or a step.

    Raises:
        UserError: it is missing or cannot be read.
    """
    step = run.checkpoints.resolve(checkpoint)
    mesh = evaluation_mesh(run.config, jax.devices())
    return Subject(run, checkpoint, step, mesh, run.params(step, mesh))


def text_windows(run: Run, text: Path) -> TextWindows:
    """A UTF-8 file as one document, read in constant memory."""
    data, seq_len = run.config.data, run.config.train.seq_len
    return TextWindows(stream_text(text), run.tokenizer, seq_len, str(text), data.count_line_ends)


def evaluate_run(path: Path, checkpoint: str, split_name: str, text: Path | None) -> dict:
    """Evaluates a checkpoint of a run, prints tables, and writes eval.json and plots.

    Args:
        path: the workdir.
        checkpoint: best, latest, final, or a step.
        split_name: validation or test.
        text: a UTF-8 file to evaluate instead of a split.

    Returns:
        The contents of eval.json.

    Raises:
        UserError: the workdir, checkpoint or text is missing, or has nothing to predict.
    """
    if text is not None:
        check_text(text)
    run = open_run(path)
    train = run.config.train

    def source() -> SplitWindows | TextWindows:
        if text is not None:
            return text_windows(run, text)
        return SplitWindows(run.split(split_name), train.eval_batch_size, train.seq_len)

    with waiting(f"evaluating {path}"):
        subject = read_subject(run, checkpoint)
        carried, fresh = (subject.evaluate(source(), carry) for carry in (True, False))
    # A text file is read with carried memory; a split, as validation reads it in training.
    result = carried if text or train.carry_memory else fresh
    values = {
        **subject.facts(),
        "text": str(text) if text else f"{split_name} split",
        "carried_memory": result is carried,
        **result.to_dict(),
        "peak_memory_bytes": _peak_memory(),
        "documents": carried.breakdown.documents,
        "total": _rows(carried.breakdown, fresh.breakdown, "total")[0],
        **{f"by_{kind}": _rows(carried.breakdown, fresh.breakdown, kind) for kind in TABLES},
    }
    _print_values(values)
    for kind in TABLES:
        _print_buckets(values, carried.breakdown, kind, train.seq_len)
    print(about_intervals(carried.breakdown))
    write_text(path / "eval.json", json.dumps(values, indent=2) + "\n")
    positions = (of.breakdown.buckets("position") for of in (carried, fresh))
    draw(path / "loss_by_position.png", plot_positions, *positions, train.seq_len)
    curves = {f"fresh every {train.seq_len}": fresh.breakdown, "carried": carried.breakdown}
    reach = {"carried": run.config.model.seen_tokens}
    draw(path / "loss_by_distance.png", plot_distances, curves, reach)
    return values


def about_intervals(breakdown: Breakdown) -> str:
    """A line for below the tables: where their intervals come from, or why there are none."""
    count = breakdown.documents
    if count < FEWEST:
        return f"no intervals: they need {FEWEST} documents to resample; the text has {count}"
    return (
        f"intervals: from {DRAWS:,} resamplings of the text's {count:,} documents; "
        f"-: fewer than {FEWEST} of them have such tokens"
    )


def interval_text(interval: tuple[float, float] | None) -> str:
    """An interval of a difference."""
    return "-" if interval is None else f"{interval[0]:+z.4f} to {interval[1]:+z.4f}"


def _rows(carried: Breakdown, fresh: Breakdown, kind: str) -> list[dict]:
    """The buckets of a kind for eval.json; the difference is carried minus fresh memory."""
    three = carried.buckets(kind), fresh.buckets(kind), carried.buckets(kind, minus=fresh)
    return [
        {
            **bucket._asdict(),
            "loss_not_carried": of_fresh.loss,
            "interval_not_carried": of_fresh.interval,
            "difference": difference.loss,
            "interval_of_difference": difference.interval,
        }
        for bucket, of_fresh, difference in zip(*three, strict=True)
    ]


def _peak_memory() -> int:
    """Peak bytes held by this process: on the accelerator if there is one, else in main memory."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _print_values(values: dict) -> None:
    word = values["word_perplexity"]
    rows = (
        ("step", f"{values['step']:,}"),
        ("text", values["text"]),
        ("tokens", f"{values['tokens']:,}"),
        ("memory", "carried" if values["carried_memory"] else "fresh in each window"),
        ("loss (nats per token)", f"{values['loss']:.6f}"),
        ("perplexity", f"{values['perplexity']:.4f}"),
        ("perplexity per word", "" if word is None else f"{word:,.2f}"),
        ("perplexity per byte", f"{values['byte_perplexity']:.4f}"),
        ("token accuracy", f"{values['accuracy']:.2%}"),
        ("bits per byte", f"{values['bits_per_byte']:.4f}"),
        ("tokens per second", f"{values['tokens_per_second']:,.0f}"),
        ("parameters", f"{values['parameters']:,}"),
        ("bytes of parameters", f"{values['parameter_bytes']:,}"),
        ("bytes of state per text", f"{values['state_bytes']:,}"),
        ("peak bytes of memory", f"{values['peak_memory_bytes']:,}"),
    )
    title = f"{values['workdir']}, {values['checkpoint']} checkpoint"
    print_table(("", ""), rows, framed=True, title=title, show_header=False)


def _print_buckets(values: dict, breakdown: Breakdown, kind: str, seq_len: int) -> None:
    title, head = TABLES[kind]
    names = (head, "tokens", "carried", f"fresh every {seq_len}", "difference", "95% interval")
    rows = [
        (
            bucket.name,
            f"{bucket.tokens:,}",
            f"{row['loss']:.4f}",
            f"{row['loss_not_carried']:.4f}",
            f"{row['difference']:+z.4f}",
            interval_text(row["interval_of_difference"]),
        )
        for bucket, row in zip(breakdown.buckets(kind), values[f"by_{kind}"], strict=True)
    ]
    print_table(names, rows, texts=0, framed=True, wide=True, title=title)
