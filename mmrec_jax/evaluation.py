"""Loss, perplexity, accuracy and bits per byte of a model on a text."""

import dataclasses
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from mmrec_jax.config import Config
from mmrec_jax.data.dataset import Split
from mmrec_jax.data.stream import Batch, TextWindows, every_window
from mmrec_jax.data.text_files import stream_text
from mmrec_jax.model.lm import init_state
from mmrec_jax.pictures import draw_losses_by_position
from mmrec_jax.training.step import Params, init_params, make_eval_step
from mmrec_jax.workdir import open_run

FIRST_BUCKET = 256  # tokens of context in the first bucket of the loss by position; then doubling


class Bucket(NamedTuple):
    """The tokens with so many tokens of context: from `first` to 2 `first` - 1, or 0 to 255."""

    first: int
    tokens: int
    loss: float  # nats per token


@dataclasses.dataclass(frozen=True)
class EvalResult:
    loss: float  # nats per token
    accuracy: float  # share of tokens whose most likely prediction is right
    bits_per_byte: float  # of the UTF-8 text
    tokens: int  # predicted
    tokens_per_second: float
    by_position: tuple[Bucket, ...] = ()

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def to_dict(self) -> dict:
        """The figures of the whole text."""
        values = dataclasses.asdict(self)
        del values["by_position"]
        return {**values, "perplexity": self.perplexity}


def evaluate(
    eval_step, params: Params, text: Split | TextWindows, config: Config, carry_memory: bool
) -> EvalResult:
    """Evaluates every token of a text once, in windows of the training length.

    Args:
        eval_step: of `make_eval_step`.
        params: the model's parameters.
        text: a split, read in `eval_batch_size` lanes; or windows, read as they come.
        config: of the run.
        carry_memory: whether a window goes on from the one before it in its lane.
    """
    start = time.perf_counter()
    batches = text
    if isinstance(text, Split):
        batches = every_window(text, config.train.eval_batch_size, config.train.seq_len)
    sums, memory, pending, last = _Sums(), None, None, None
    for batch in batches:
        if carry_memory and memory is None:
            memory = init_state(config.model, len(batch.tokens))
        tokens, memory = eval_step(params, batch, memory)
        if pending is not None:  # fetched while the next step runs
            sums.add(*pending)
        context, last = _context(batch, last)
        pending = (tokens, batch.weights, context)
    sums.add(*pending)
    seconds = time.perf_counter() - start
    loss, correct, count = sums.by_bucket.sum(axis=0)
    return EvalResult(
        loss=float(loss / count),
        accuracy=float(correct / count),
        bits_per_byte=float(loss / math.log(2) / text.num_bytes),
        tokens=int(count),
        tokens_per_second=float(count / seconds),
        by_position=sums.buckets(),
    )


class _Sums:
    """Sums in float64 of loss, right predictions and tokens, by bucket of context."""

    def __init__(self):
        self.by_bucket = np.zeros((64, 3))

    def add(self, tokens, weights, context) -> None:
        bucket = np.frexp(context // FIRST_BUCKET)[1]  # 0, then 1 + log2
        for column, values in enumerate((*jax.device_get(tokens), weights)):
            self.by_bucket[:, column] += np.bincount(
                bucket.ravel(), values.ravel().astype(np.float64), minlength=64
            )

    def buckets(self) -> tuple[Bucket, ...]:
        return tuple(
            Bucket(FIRST_BUCKET << index - 1 if index else 0, int(tokens), float(loss / tokens))
            for index, (loss, _, tokens) in enumerate(self.by_bucket)
            if tokens
        )


def _context(batch: Batch, last) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """For each token how many of its document its lane has read before, and what to pass next."""
    count, document = (-1, -1) if last is None else last
    count = np.where(batch.fresh | (batch.documents[:, 0] != document), -1, count)
    starts = np.diff(batch.documents, axis=1, prepend=batch.documents[:, :1]) != 0
    index = np.arange(batch.documents.shape[1])
    start = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    begun = np.maximum.accumulate(starts, axis=1)
    context = np.where(begun, index - start, count[:, None] + 1 + index)
    return context, (context[:, -1], batch.documents[:, -1])


def evaluate_run(path: Path, checkpoint: str, split_name: str, text: Path | None) -> dict:
    """Evaluates a checkpoint of a workdir, prints tables, writes eval.json and a picture.

    Args:
        path: the workdir.
        checkpoint: best, latest, final or a step.
        split_name: validation or test.
        text: a UTF-8 file to evaluate instead of a split, read in constant memory.

    Returns:
        What eval.json holds.

    Raises:
        UserError: no such workdir, checkpoint or text, or nothing in it to predict.
    """
    run = open_run(path)
    step = run.checkpoints.resolve(checkpoint)
    seq_len = run.config.train.seq_len

    def source() -> Split | TextWindows:
        if text is None:
            return run.split(split_name)
        return TextWindows(stream_text(text), run.tokenizer, seq_len, str(text))

    params = restore_params(run, step)
    eval_step = make_eval_step(run.config.model)
    batch_size = 1 if text else run.config.train.eval_batch_size
    _compile(eval_step, params, run.config, batch_size)  # before the clock starts
    carried, fresh = (
        evaluate(eval_step, params, source(), run.config, carry) for carry in (True, False)
    )
    # A text of its own is read as one; a split as it was while training.
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
        "peak_memory_bytes": peak_memory(),
        "by_position": [
            {**of_carried._asdict(), "loss": of_carried.loss, "loss_not_carried": of_fresh.loss}
            for of_carried, of_fresh in zip(carried.by_position, fresh.by_position, strict=True)
        ],
    }
    _print_table(values)
    _print_positions(values["by_position"], seq_len)
    (path / "eval.json").write_text(json.dumps(values, indent=2) + "\n")
    draw_losses_by_position(values["by_position"], seq_len, path)
    return values


def _compile(eval_step, params, config: Config, batch_size: int) -> None:
    shape = (batch_size, config.train.seq_len)
    tokens, ones = np.zeros(shape, np.int32), np.ones(shape, np.float32)
    batch = Batch(tokens, tokens, tokens, ones, np.ones(batch_size, bool))
    for memory in (None, init_state(config.model, batch_size)):
        jax.block_until_ready(eval_step(params, batch, memory))


def restore_params(run, step: int) -> Params:
    """The parameters of a checkpoint."""
    like = jax.eval_shape(lambda: init_params(run.config.model, jax.random.key(0)))
    return run.checkpoints.restore_params(step, like)


def state_bytes(config: Config) -> int:
    """Bytes of the model's memory of one text, however long."""
    state = jax.eval_shape(lambda: init_state(config.model, 1))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def peak_memory() -> int:
    """Most bytes this process has held: on the accelerator if there is one, else in memory."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _print_table(values: dict) -> None:
    table = Table(
        title=f"{values['workdir']}, {values['checkpoint']} checkpoint", show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    for name, text in (
        ("step", f"{values['step']:,}"),
        ("text", values["text"]),
        ("tokens", f"{values['tokens']:,}"),
        ("memory", "carried" if values["carried_memory"] else "fresh in each window"),
        ("loss (nats per token)", f"{values['loss']:.6f}"),
        ("perplexity", f"{values['perplexity']:.4f}"),
        ("token accuracy", f"{values['accuracy']:.2%}"),
        ("bits per byte", f"{values['bits_per_byte']:.4f}"),
        ("tokens per second", f"{values['tokens_per_second']:,.0f}"),
        ("parameters", f"{values['parameters']:,}"),
        ("parameter bytes", f"{values['parameter_bytes']:,}"),
        ("state bytes a text", f"{values['state_bytes']:,}"),
        ("peak memory bytes", f"{values['peak_memory_bytes']:,}"),
    ):
        table.add_row(name, text)
    Console().print(table)


def _print_positions(buckets: list[dict], seq_len: int) -> None:
    table = Table(title="loss by tokens of context")
    for name in ("context", "tokens", "memory carried", f"fresh every {seq_len}"):
        table.add_column(name, justify="right")
    for bucket in buckets:
        last = 2 * bucket["first"] - 1 if bucket["first"] else FIRST_BUCKET - 1
        table.add_row(
            f"{bucket['first']:,} to {last:,}",
            f"{bucket['tokens']:,}",
            f"{bucket['loss']:.4f}",
            f"{bucket['loss_not_carried']:.4f}",
        )
    Console().print(table)
