"""Evaluates a run: tables, eval.json, and a plot of the loss by tokens of context."""

import json
import resource
import sys
from pathlib import Path

import jax
import numpy as np

from mmrec_jax.config import Config
from mmrec_jax.data.batches import Batch, TextWindows
from mmrec_jax.data.dataset import Split
from mmrec_jax.data.sources.text_files import stream_text
from mmrec_jax.files import write_text
from mmrec_jax.learning.evaluate import FIRST_BUCKET, evaluate, make_eval_step, state_bytes
from mmrec_jax.model.lm import init_state
from mmrec_jax.report.plots import draw, plot_positions
from mmrec_jax.runs.workdir import open_run
from mmrec_jax.tables import print_table


def evaluate_run(path: Path, checkpoint: str, split_name: str, text: Path | None) -> dict:
    """Evaluates a checkpoint of a run, prints tables, and writes eval.json and a plot.

    Args:
        path: the workdir.
        checkpoint: best, latest, final, or a step.
        split_name: validation or test.
        text: a UTF-8 file to evaluate instead of a split, read in constant memory.

    Returns:
        The contents of eval.json.

    Raises:
        UserError: the workdir, checkpoint or text is missing, or has nothing to predict.
    """
    run = open_run(path)
    step = run.checkpoints.resolve(checkpoint)
    seq_len = run.config.train.seq_len

    def source() -> Split | TextWindows:
        if text is None:
            return run.split(split_name)
        line_ends = run.config.data.count_line_ends
        return TextWindows(stream_text(text), run.tokenizer, seq_len, str(text), line_ends)

    params = run.params(step)
    eval_step = make_eval_step(run.config.model)
    batch_size = 1 if text else run.config.train.eval_batch_size
    _compile(eval_step, params, run.config, batch_size)  # so that compiling is not timed
    carried, fresh = (
        evaluate(eval_step, params, source(), run.config, carry) for carry in (True, False)
    )
    positions = carried.by_position, fresh.by_position
    # A text file is read with carried memory; a split, as validation reads it in training.
    result = carried if text or run.config.train.carry_memory else fresh
    values = {
        "workdir": str(path),
        "checkpoint": checkpoint,
        "step": step,
        "text": str(text) if text else f"{split_name} split",
        "carried_memory": result is carried,
        **result.to_dict(),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "parameter_bytes": sum(x.nbytes for x in jax.tree.leaves(params)),
        "state_bytes": state_bytes(run.config),
        "peak_memory_bytes": _peak_memory(),
        "by_position": [
            {**bucket._asdict(), "loss_not_carried": of_fresh.loss}
            for bucket, of_fresh in zip(*positions, strict=True)
        ],
    }
    _print_values(values)
    _print_positions(values["by_position"], seq_len)
    write_text(path / "eval.json", json.dumps(values, indent=2) + "\n")
    draw(path / "loss_by_position.png", plot_positions, *positions, seq_len)
    return values


def _compile(eval_step, params, config: Config, batch_size: int) -> None:
    shape = (batch_size, config.train.seq_len)
    tokens, ones = np.zeros(shape, np.int32), np.ones(shape, np.float32)
    batch = Batch(tokens, tokens, tokens, ones, np.ones(batch_size, bool))
    for memory in (None, init_state(config.model, batch_size)):
        jax.block_until_ready(eval_step(params, batch, memory))


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


def _print_positions(buckets: list[dict], seq_len: int) -> None:
    names = ("context", "tokens", "carried memory", f"fresh every {seq_len}")
    rows = []
    for bucket in buckets:
        first = bucket["first"]
        last = 2 * first - 1 if first else FIRST_BUCKET - 1
        losses = f"{bucket['loss']:.4f}", f"{bucket['loss_not_carried']:.4f}"
        rows.append((f"{first:,} to {last:,}", f"{bucket['tokens']:,}", *losses))
    print_table(names, rows, texts=0, framed=True, title="loss by tokens of context")
