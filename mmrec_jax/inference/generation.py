"""Text generation with a trained model, at a constant cost per token."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mmrec_jax.config import ModelConfig
from mmrec_jax.errors import UserError
from mmrec_jax.model.block import param_dtype
from mmrec_jax.model.lm import State, init_state
from mmrec_jax.model.params import Params, model_graph
from mmrec_jax.model.streaming import extend

READ_AT_ONCE = 256  # tokens of a prompt, or one chunk if that is longer; bounds memory use


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Raises:
        UserError: a value is out of range.
    """

    temperature: float = 0.8  # 0 takes the most likely token
    top_k: int = 0  # sample from this many of the most likely tokens; 0: from all
    top_p: float = 1.0  # sample from the fewest tokens with this total probability
    seed: int = 0

    def __post_init__(self):
        for name, good, wanted in (
            ("temperature", 0 <= self.temperature < float("inf"), "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            if not good:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {wanted}")


class Session(NamedTuple):
    """Everything needed to continue a text. Its size does not depend on the text's length."""

    state: State
    logits: Float[Array, "batch vocab"]  # of the next token
    drawn: Int[Array, ""]  # tokens drawn so far
    read: Int[Array, "batch"]  # tokens read so far, including drawn ones


class Generator:
    """A model's parameters, with compiled functions that read and write texts."""

    def __init__(self, config: ModelConfig, params: Params, text_ids: range):
        """`text_ids`: the only ids that are drawn; the others do not stand for text."""
        self.config, self.params = config, params
        graph = model_graph(config)

        @jax.jit
        def read(params, session, tokens, lengths):
            model = nnx.merge(graph, params)
            logits, state = extend(model, session.state, tokens, lengths=lengths)
            last = jnp.maximum(lengths - 1, 0)[:, None, None]
            last = jnp.take_along_axis(logits, last, axis=1)[:, 0]
            last = jnp.where(lengths[:, None] > 0, last, session.logits)
            return logits, Session(state, last, session.drawn, session.read + lengths)

        @functools.partial(jax.jit, static_argnames=("top_k", "top_p"))
        def advance(params, session, temperature, seed, top_k, top_p):
            key = jax.random.fold_in(jax.random.key(seed), session.drawn)
            logits = session.logits[:, text_ids.start : text_ids.stop]
            tokens = text_ids.start + draw(logits, key, jnp.float32(temperature), top_k, top_p)
            documents = jnp.maximum(session.state.document, 0)
            output = nnx.merge(graph, params).step(tokens, documents, session.state)
            session = Session(output.state, output.logits, session.drawn + 1, session.read + 1)
            return tokens, session

        self._read, self._advance = read, advance

    def start(self, batch: int = 1) -> Session:
        """A session of `batch` texts, with nothing read yet."""
        logits = jnp.zeros((batch, self.config.vocab_size), param_dtype(self.config))
        zeros = jnp.zeros(batch, jnp.int32)
        return Session(init_state(self.config, batch), logits, jnp.zeros((), jnp.int32), zeros)

    def read(self, session: Session, texts: Sequence[np.ndarray]) -> Session:
        """The session after reading more tokens: one int32 array per text, of any length."""
        for _, after in self._pieces(session, texts):
            session = after
        return session

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits of the next token after each token of a new text, [tokens, vocab]."""
        pieces = [np.asarray(logits[0]) for logits, _ in self._pieces(self.start(), [tokens])]
        return np.concatenate([*pieces, np.zeros((0, self.config.vocab_size))])[: len(tokens)]

    def _pieces(self, session, texts):
        size = max(READ_AT_ONCE // self.config.chunk_len, 1) * self.config.chunk_len
        longest = max(map(len, texts), default=0)
        for first in range(0, longest, size):
            # Use few different shapes, because each one is compiled.
            width = min(size, max(16, 1 << (longest - first - 1).bit_length()))
            tokens = np.zeros((len(texts), width), np.int32)
            lengths = np.zeros(len(texts), np.int32)
            for row, text in enumerate(texts):
                piece = text[first : first + width]
                tokens[row, : len(piece)], lengths[row] = piece, len(piece)
            logits, session = self._read(self.params, session, tokens, lengths)
            yield logits, session

    def write(
        self, session: Session, max_tokens: int, sampling: Sampling
    ) -> Iterator[tuple[np.ndarray, Session]]:
        """Draws `max_tokens` tokens per text, one after another.

        Yields:
            Tokens, int32 [batch], and the session after reading them.

        Raises:
            UserError: a text has no token yet.
        """
        if not np.all(session.read):
            raise UserError("the prompt is empty; give at least one token")
        # The next token is computed while the caller uses this one.
        steps = itertools.chain(self._steps(session, max_tokens, sampling), [None])
        for (tokens, after), _ in itertools.pairwise(steps):
            yield np.asarray(tokens), after

    def _steps(self, session, max_tokens, sampling):
        for _ in range(max_tokens):
            tokens, session = self._advance(self.params, session, **dataclasses.asdict(sampling))
            yield tokens, session


def draw(
    logits: Float[Array, "batch vocab"],
    key: PRNGKeyArray,
    temperature: Float[Array, ""],
    top_k: int,
    top_p: float,
) -> Int[Array, "batch"]:
    """Draws one token per text; see `Sampling`. Nucleus sampling (top_p): Holtzman et al., 2020."""
    logits = logits.astype(jnp.float32)
    scaled = logits / jnp.maximum(temperature, 1e-6)
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(scaled, top_k)[0][:, -1:]
        scaled = jnp.where(scaled >= least, scaled, -jnp.inf)
    if top_p < 1:
        ordered = jnp.sort(jax.nn.softmax(scaled), axis=-1, descending=True)
        before = jnp.cumsum(ordered, axis=-1) - ordered  # total probability of all likelier tokens
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        scaled = jnp.where(jax.nn.softmax(scaled) >= least, scaled, -jnp.inf)
    drawn = jax.random.categorical(key, scaled)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Cuts a stream of text before the first stop string; holds back any beginning of one."""
    stops = [stop for stop in stops if stop]
    beginnings = [stop[:n] for stop in stops for n in range(1, len(stop))]
    held = ""
    for piece in pieces:
        held += piece
        if places := [held.find(stop) for stop in stops if stop in held]:
            yield held[: min(places)]
            return
        shown = len(held) - max((len(x) for x in beginnings if held.endswith(x)), default=0)
        yield held[:shown]
        held = held[shown:]
    yield held
