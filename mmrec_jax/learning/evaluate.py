"""Loss, perplexity, accuracy and bits per byte of a model on a text."""

import dataclasses
import functools
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
from mmrec_jax.data.batches import Batch, SplitWindows, TextWindows
from mmrec_jax.data.dataset import Split
from mmrec_jax.learning.breakdown import Breakdown
from mmrec_jax.learning.distance import Follower
from mmrec_jax.learning.step import begin
from mmrec_jax.model.interface import ModelFunctions, mmrec
from mmrec_jax.model.layout import by_sequence, everywhere
from mmrec_jax.model.params import Params


class EvalTokens(NamedTuple):
    """What an evaluation step reports for each token."""

    loss: Float[Array, "batch T"]  # nats; 0 where nothing is predicted
    correct: Float[Array, "batch T"]  # 1 where the most likely token is correct, else 0


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The figures of an evaluation."""

    loss: float  # nats per token
    accuracy: float  # share of tokens whose most likely prediction is correct
    bits_per_byte: float  # of the UTF-8 text
    tokens: int  # number of predicted tokens
    tokens_per_second: float
    breakdown: Breakdown | None = dataclasses.field(default=None, repr=False, compare=False)
    loss_per_word: float | None = None  # nats; None if the words are not counted

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return _exp(self.loss)

    @property
    def word_perplexity(self) -> float | None:
        """exp of the total loss divided by the number of words (data.count_line_ends)."""
        return None if self.loss_per_word is None else _exp(self.loss_per_word)

    @property
    def byte_perplexity(self) -> float:
        """exp of the total loss divided by the number of UTF-8 bytes."""
        return _exp(self.bits_per_byte * math.log(2))

    def to_dict(self) -> dict:
        """The figures of the complete text, without their breakdown."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["breakdown"], values["loss_per_word"]
        for name in ("perplexity", "word_perplexity", "byte_perplexity"):
            values[name] = getattr(self, name)
        return values


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


@functools.cache
def make_eval_step(
    config: ModelConfig, model: ModelFunctions | None = None
) -> Callable[[Params, Batch, Any], tuple[EvalTokens, Any]]:
    """The jitted evaluation of one batch, without dropout: what it finds, and the memory after it.

    `model` is MM-Rec unless another language model is given.
    """
    model = mmrec(config) if model is None else model

    def step(params: Params, batch: Batch, memory: Any):
        memory = begin(model, memory, batch)
        output = model.apply(params, batch.tokens, batch.documents, memory, None)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch.targets)
        correct = jnp.argmax(output.logits, axis=-1) == batch.targets
        tokens = everywhere(EvalTokens(losses * batch.weights, correct * batch.weights))
        return tokens, by_sequence(output.state)

    return jax.jit(step)


@functools.partial(jax.jit, static_argnums=(0, 1))
def empty_memory(model: ModelFunctions, batch: int) -> Any:
    """The empty state of `batch` sequences, placed as an evaluation step returns it.

    Otherwise the step would be compiled twice.
    """
    return by_sequence(model.init_state(batch))


def evaluate(
    eval_step,
    params: Params,
    text: Split | SplitWindows | TextWindows,
    config: Config,
    carry_memory: bool,
    distances: bool = False,
    model: ModelFunctions | None = None,
) -> EvalResult:
    """Evaluates every token of a text once, in windows of the training length.

    Args:
        eval_step: the result of `make_eval_step`.
        params, config: those of the run.
        text: a split, read in `eval_batch_size` lanes, or windows, read in order.
        carry_memory: whether a window starts with the memory of the previous one in its lane, not
            with an empty one.
        distances: whether the result breaks the loss down by distance too (`distance.Places`).
        model: that of `eval_step`; None: MM-Rec.

    Raises:
        UserError: the windows have nothing to predict.
    """
    start = time.perf_counter()
    model = mmrec(config.model) if model is None else model
    if isinstance(text, Split):
        text = SplitWindows(text, config.train.eval_batch_size, config.train.seq_len)

    def steps():
        memory = None
        for batch in text:
            if memory is None:
                memory = empty_memory(model, len(batch.tokens))
            tokens, after = eval_step(params, batch, memory)
            memory = after if carry_memory else memory
            yield tokens, batch

    follower, breakdown, correct = Follower(distances), Breakdown(), 0.0
    # Each step is fetched while the next one runs.
    for (tokens, batch), _ in itertools.pairwise(itertools.chain(steps(), [None])):
        tokens = jax.device_get(tokens)
        breakdown.add(batch, tokens.loss, follower.places(batch))
        correct += tokens.correct.sum(dtype=np.float64)
    seconds = time.perf_counter() - start
    loss, count = breakdown.total_loss, breakdown.total_tokens
    return EvalResult(
        loss=loss / count,
        accuracy=float(correct / count),
        bits_per_byte=loss / math.log(2) / text.num_bytes,
        loss_per_word=loss / text.num_words if text.num_words else None,
        tokens=count,
        tokens_per_second=count / seconds,
        breakdown=breakdown,
    )


def state_bytes(config: Config) -> int:
    """Bytes of the model's state for one text of any length."""
    state = jax.eval_shape(lambda: mmrec(config.model).init_state(1))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
