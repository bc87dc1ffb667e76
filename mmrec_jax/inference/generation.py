"""Text generation with a trained model, at a constant cost per token."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
WRITE_AT_ONCE = 32  # tokens of a group at most
GROUP_SECONDS = 0.1  # after which a reader would notice that tokens come in groups


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
            ("top_k", 0 <= self.top_k < 2**31, "at least 0 and below 2**31"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", 0 <= self.seed < 2**63, "at least 0, of at most 63 bits"),
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
        self.config, self.params = config, jax.device_put(params)
        graph = model_graph(config)

        @jax.jit
        def read(params, session, tokens, lengths):
            model = nnx.merge(graph, params)
            logits, state = extend(model, session.state, tokens, lengths=lengths)
            last = jnp.maximum(lengths - 1, 0)[:, None, None]
            last = jnp.take_along_axis(logits, last, axis=1)[:, 0]
            last = jnp.where(lengths[:, None] > 0, last, session.logits)
            return logits, Session(state, last, session.drawn, session.read + lengths)

        @jax.jit
        def advance(params, session, known, num_known, count, sampling, seed):
            model, key = nnx.merge(graph, params), jax.random.key(seed)
            weights = model.split_weights()

            def drawn(session):
                logits = session.logits[:, text_ids.start : text_ids.stop]
                of_token = jax.random.fold_in(key, session.drawn)
                return text_ids.start + draw(logits, of_token, *sampling)

            def step(carry):
                i, session, tokens = carry
                of_text = jax.lax.cond(i < num_known, lambda _: tokens[i], drawn, session)
                documents = jnp.maximum(session.state.document, 0)
                state, logits = model.step(of_text, documents, session.state, weights)[1::-1]
                session = Session(state, logits, session.drawn + (i >= num_known), session.read + 1)
                return i + 1, session, tokens.at[i].set(of_text)

            first = jnp.zeros((), jnp.int32), session, known
            _, session, tokens = jax.lax.while_loop(lambda carry: carry[0] < count, step, first)
            return tokens, session

        def start(batch):
            logits = jnp.zeros((batch, config.vocab_size), param_dtype(config))
            read = jnp.zeros(batch, jnp.int32)
            return Session(init_state(config, batch), logits, jnp.zeros((), jnp.int32), read)

        self._read, self._advance = read, advance
        # Placed like the parameters, as is what the other functions return: otherwise these would
        # be compiled twice.
        place = jax.tree.leaves(self.params)[0].sharding
        self._start = jax.jit(start, static_argnums=0, out_shardings=place)

    def start(self, batch: int = 1) -> Session:
        """A session of `batch` texts, with nothing read yet."""
        return self._start(batch)

    def read(self, session: Session, texts: Sequence[np.ndarray]) -> Session:
        """The session after reading more tokens: one int32 array per text, of any length."""
        lengths = set(map(len, texts))
        if len(lengths) == 1 and max(lengths) <= WRITE_AT_ONCE:
            # By the program that writes, so that none has to be compiled for reading.
            return self._step(session, np.stack(texts, axis=1), max(lengths), Sampling())[1]
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
    ) -> Iterator[tuple[np.ndarray, Callable[[], Session]]]:
        """Draws `max_tokens` tokens per text, one after another.

        They are computed in groups: first one token, then twice as many each time, up to
        WRITE_AT_ONCE, as long as a group takes less than GROUP_SECONDS.

        Yields:
            Tokens, int32 [batch], and a function that gives the session after reading them.

        Raises:
            UserError: a text has no token yet.
        """
        if not np.all(session.read):
            raise UserError("the prompt is empty; give at least one token")
        # The next group is computed while the caller uses this one.
        groups = itertools.chain(self._groups(session, max_tokens, sampling), [None])
        for (before, count, tokens, after), _ in itertools.pairwise(groups):
            tokens = np.asarray(tokens)
            for i in range(1, count):
                yield tokens[i - 1], functools.partial(self._after, before, i, sampling)
            yield tokens[count - 1], functools.partial(_same, after)

    def _groups(self, session, max_tokens, sampling):
        size, left = 1, max_tokens
        while left:
            count, begin = min(size, left), time.perf_counter()
            tokens, after = self._step(session, None, count, sampling)
            yield session, count, tokens, after
            session, left = after, left - count
            fast = time.perf_counter() - begin < GROUP_SECONDS
            size = min(2 * size, WRITE_AT_ONCE) if fast else max(size // 2, 1)

    def _after(self, session, count, sampling):
        return self._step(session, None, count, sampling)[1]

    def _step(self, session, known, count, sampling):
        """`count` more tokens per text, [WRITE_AT_ONCE, batch], known or drawn; and the session."""
        tokens = np.zeros((WRITE_AT_ONCE, len(session.read)), np.int32)
        if known is not None:
            tokens[:count] = known
        num_known = 0 if known is None else count
        how = np.float32(sampling.temperature), sampling.top_k, np.float32(sampling.top_p)
        return self._advance(self.params, session, tokens, num_known, count, how, sampling.seed)


def _same(session: Session) -> Session:
    return session


def draw(
    logits: Float[Array, "batch vocab"],
    key: PRNGKeyArray,
    temperature: Float[Array, ""] | float,
    top_k: Int[Array, ""] | int,
    top_p: Float[Array, ""] | float,
) -> Int[Array, "batch"]:
    """Draws one token per text; see `Sampling`.

    It is the first token at which the sum of the probabilities exceeds a random number.
    """
    logits = logits.astype(jnp.float32)

    def most_likely():
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def random():
        scaled = logits / jnp.maximum(temperature, 1e-6)
        few = (top_k > 0) | (top_p < 1)
        left = jax.lax.cond(few, lambda: _likeliest(scaled, top_k, top_p), lambda: scaled)
        total = jnp.cumsum(jax.nn.softmax(left), axis=-1)
        point = jax.random.uniform(key, (len(logits), 1)) * total[:, -1:]
        return jnp.sum(total <= point, axis=-1, dtype=jnp.int32)

    return jax.lax.cond(temperature > 0, random, most_likely)


def _likeliest(logits, top_k, top_p):
    """Logits, except those that `Sampling` leaves out. Top-p: Holtzman et al., 2020."""
    vocab = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    last = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab) - 1
    kept = ordered >= ordered[:, last, None]
    shares = jax.nn.softmax(ordered, where=kept)
    before = jnp.cumsum(shares, axis=-1) - shares  # total probability of all likelier tokens
    kept &= (before < top_p) | (top_p >= 1)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


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
