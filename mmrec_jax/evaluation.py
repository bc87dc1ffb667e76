"""Loss, perplexity, accuracy and bits per byte of a model on a text."""

import dataclasses
import json
import math
import resource
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from mmrec_jax.config import Config
from mmrec_jax.data.corpora import read_text
from mmrec_jax.data.stream import Split, encode_documents, every_window
from mmrec_jax.errors import UserError
from mmrec_jax.model.lm import init_state
from mmrec_jax.training.step import Params, init_params, make_eval_step
from mmrec_jax.workdir import open_run


@dataclasses.dataclass(frozen=True)
class EvalResult:
    loss: float  # nats per token
    accuracy: float  # share of tokens whose most likely prediction is right
    bits_per_byte: float  # of the UTF-8 text
    tokens: int  # predicted
    tokens_per_second: float

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def to_dict(self) -> dict:
        return {**dataclasses.asdict(self), "perplexity": self.perplexity}


def evaluate(eval_step, params: Params, split: Split, config: Config) -> EvalResult:
    """Evaluates every token of a split once, in windows of the training length."""
    start = time.perf_counter()
    batches = every_window(split, config.train.eval_batch_size, config.train.seq_len)
    # All steps are dispatched before the first sum is fetched; sums are added in float64.
    sums = [eval_step(params, batch) for batch in batches]
    loss, correct, tokens = np.sum(np.array(jax.device_get(sums), np.float64), axis=0)
    return EvalResult(
        loss=float(loss / tokens),
        accuracy=float(correct / tokens),
        bits_per_byte=float(loss / math.log(2) / split.num_bytes),
        tokens=int(tokens),
        tokens_per_second=float(tokens / (time.perf_counter() - start)),
    )


def evaluate_run(path: Path, checkpoint: str, split_name: str, text: Path | None) -> dict:
    """Evaluates a checkpoint of a workdir, prints a table and writes eval.json.

    Args:
        path: the workdir.
        checkpoint: best, latest, final or a step.
        split_name: validation or test.
        text: a UTF-8 file to evaluate instead of a split.

    Returns:
        What eval.json holds.

    Raises:
        UserError: no such workdir, checkpoint or text, or nothing in it to predict.
    """
    run = open_run(path)
    step = run.checkpoints.resolve(checkpoint)
    if text is None:
        split, source = run.split(split_name), f"{split_name} split"
    else:
        split, source = encode_documents([read_text(text)], run.tokenizer), str(text)
        if not split.num_bytes:
            raise UserError(f"{text} has no character to predict; it needs at least two")
    params = restore_params(run, step)
    eval_step = make_eval_step(run.config.model)
    first = next(every_window(split, run.config.train.eval_batch_size, run.config.train.seq_len))
    jax.block_until_ready(eval_step(params, first))  # compile before the clock starts
    result = evaluate(eval_step, params, split, run.config)
    values = {
        "workdir": str(path),
        "checkpoint": checkpoint,
        "step": step,
        "text": source,
        **result.to_dict(),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "parameter_bytes": sum(x.nbytes for x in jax.tree.leaves(params)),
        "state_bytes": state_bytes(run.config),
        "peak_memory_bytes": peak_memory(),
    }
    _print_table(values)
    (path / "eval.json").write_text(json.dumps(values, indent=2) + "\n")
    return values


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
