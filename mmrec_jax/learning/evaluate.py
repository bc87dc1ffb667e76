"""Loss, perplexity, accuracy and bits per byte of a model on a text."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mmrec_jax.config import Config, ModelConfig
from mmrec_jax.data.batches import Batch, TextWindows, every_window
from mmrec_jax.data.dataset import Split
from mmrec_jax.learning.step import begin
from mmrec_jax.model.interface import ModelFunctions, mmrec
from mmrec_jax.model.params import Params

FIRST_BUCKET = 256  # tokens of context in the first bucket of the loss by position; the rest double


class EvalTokens(NamedTuple):
    """What an evaluation step reports for each token."""

    loss: Float[Array, "batch T"]  # nats; 0 where nothing is predicted
    correct: Float[Array, "batch T"]  # 1 where the most likely token is correct, else 0


class Bucket(NamedTuple):
    """The tokens with `first` to 2 `first` - 1 tokens of context; in the first bucket, 0 to 255."""

    first: int
    tokens: int
    loss: float  # nats per token


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The figures of an evaluation."""

    loss: float  # nats per token
    accuracy: float  # share of tokens whose most likely prediction is correct
    bits_per_byte: float  # of the UTF-8 text
    tokens: int  # number of predicted tokens
    tokens_per_second: float
    by_position: tuple[Bucket, ...] = ()

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def to_dict(self) -> dict:
        """The figures of the complete text, without those by position."""
        values = dataclasses.asdict(self)
        del values["by_position"]
        return {**values, "perplexity": self.perplexity}


def make_eval_step(
    config: ModelConfig, model: ModelFunctions | None = None
) -> Callable[[Params, Batch, Any], tuple[EvalTokens, Any]]:
    """The jitted evaluation of one batch, without dropout. It carries memory if it is given one.

    `model` is MM-Rec unless another language model is given.
    """
    model = mmrec(config) if model is None else model

    def step(params: Params, batch: Batch, memory: Any):
        memory = begin(model, memory, batch)
        output = model.apply(params, batch.tokens, batch.documents, memory, None)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch.targets)
        correct = jnp.argmax(output.logits, axis=-1) == batch.targets
        tokens = EvalTokens(losses * batch.weights, correct * batch.weights)
        return tokens, None if memory is None else output.state

    return jax.jit(step)


def evaluate(
    eval_step,
    params: Params,
    text: Split | TextWindows,
    config: Config,
    carry_memory: bool,
    model: ModelFunctions | None = None,
) -> EvalResult:
    """Evaluates every token of a text once, in windows of the training length.

    Args:
        eval_step: the result of `make_eval_step`.
        params, config: those of the run.
        text: a split, read in `eval_batch_size` lanes, or windows, read in order.
        carry_memory: whether a window starts with the memory of the previous one in its lane.
        model: that of `eval_step`; None: MM-Rec.

    Raises:
        UserError: the windows have nothing to predict.
    """
    start = time.perf_counter()
    model = mmrec(config.model) if model is None else model
    batches = text
    if isinstance(text, Split):
        batches = every_window(text, config.train.eval_batch_size, config.train.seq_len)

    def steps():
        memory = last = None
        for batch in batches:
            if carry_memory and memory is None:
                memory = model.init_state(len(batch.tokens))
            tokens, memory = eval_step(params, batch, memory)
            context, last = _context(batch, last)
            yield tokens, batch.weights, context

    # Each step is fetched while the next one runs.
    in_flight = itertools.pairwise(itertools.chain(steps(), [None]))
    by_bucket = sum(_sums(*step) for step, _ in in_flight)
    seconds = time.perf_counter() - start
    loss, correct, count = by_bucket.sum(axis=0)
    return EvalResult(
        loss=float(loss / count),
        accuracy=float(correct / count),
        bits_per_byte=float(loss / math.log(2) / text.num_bytes),
        tokens=int(count),
        tokens_per_second=float(count / seconds),
        by_position=tuple(
            Bucket(FIRST_BUCKET << index - 1 if index else 0, int(tokens), float(loss / tokens))
            for index, (loss, _, tokens) in enumerate(by_bucket)
            if tokens
        ),
    )


def _sums(tokens: EvalTokens, weights, context) -> np.ndarray:
    """Float64 sums of loss, correct predictions and tokens, by bucket of context, [64, 3]."""
    bucket = np.frexp(context // FIRST_BUCKET)[1].ravel()  # 0, then 1 + log2
    columns = (*jax.device_get(tokens), weights)
    return np.stack(
        [np.bincount(bucket, x.ravel().astype(np.float64), minlength=64) for x in columns], axis=1
    )


def _context(batch: Batch, last) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """For each token, how many of its document precede it in its lane; and the next `last`."""
    count, document = (-1, -1) if last is None else last
    count = np.where(batch.fresh | (batch.documents[:, 0] != document), -1, count)
    starts = np.diff(batch.documents, axis=1, prepend=batch.documents[:, :1]) != 0
    index = np.arange(batch.documents.shape[1])
    start = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    begun = np.maximum.accumulate(starts, axis=1)
    context = np.where(begun, index - start, count[:, None] + 1 + index)
    return context, (context[:, -1], batch.documents[:, -1])


def state_bytes(config: Config) -> int:
    """Bytes of the model's state for one text of any length."""
    state = jax.eval_shape(lambda: mmrec(config.model).init_state(1))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
