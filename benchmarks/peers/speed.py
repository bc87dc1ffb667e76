"""Seconds per training step and per generated token. All models take turns within each round, so
that drift in the machine's speed affects all of them.
"""

import functools
import statistics
import time
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import optax

from benchmarks.peers.models import Model
from benchmarks.peers.transformer import Cache, Seen
from mmrec_jax.data.batches import Batches
from mmrec_jax.learning.optimizer import make_optimizer
from mmrec_jax.learning.step import init_train_state, make_train_step


def training_seconds(
    models: Sequence[Model], batches: Batches, rounds: int, steps: int
) -> dict[str, float]:
    """Seconds per training step of each model."""
    on_device = [jax.device_put(batches[index]) for index in range(steps)]

    def program(model: Model):
        optimizer = make_optimizer(model.config.train, optax.constant_schedule(1e-4))
        key = jax.random.key(0)
        state = init_train_state(model.config, optimizer, key, model=model.functions)
        step = make_train_step(model.config, optimizer, model.functions)

        def run():
            nonlocal state
            for batch in on_device:
                state, metrics = step(state, batch)
            jax.block_until_ready(metrics)

        return run

    seconds = alternate({model.name: program(model) for model in models}, rounds)
    return {name: total / steps for name, total in seconds.items()}


def generation_seconds(
    models: Sequence[Model], positions: Sequence[int], rounds: int, tokens: int
) -> dict[tuple[str, int], float]:
    """Seconds per token that each model writes after each number of tokens, greedily."""

    def program(model: Model, position: int):
        params = jax.jit(model.functions.init_params)(jax.random.key(0))
        state = state_of_age(model, params, position)
        token = jnp.ones(1, jnp.int32)

        @functools.partial(jax.jit, donate_argnums=2)
        def write(params, token, state):
            output = model.step(params, token, jnp.zeros(1, jnp.int32), state)
            return jnp.argmax(output.logits, axis=-1).astype(jnp.int32), output.state

        def run():
            nonlocal token, state
            for _ in range(tokens):
                token, state = write(params, token, state)
            jax.block_until_ready(state)

        return run

    programs = {
        (model.name, position): program(model, position)
        for model in models
        for position in positions
    }
    return {key: total / tokens for key, total in alternate(programs, rounds).items()}


def state_of_age(model: Model, params, position: int):
    """The state after at least `position` tokens in complete windows.

    A cache that grows with the text is filled with random keys and values instead: reading so many
    tokens would take long, and only time is measured. Nor is the time counted that moving the
    tokens of `Cache.new` to slots would take now and then.
    """
    length = model.config.train.seq_len
    windows = -(-position // length)
    state = model.start(windows * length)
    if any(isinstance(layer, Cache) for layer in getattr(state, "layers", ())):
        return state._replace(
            layers=tuple(map(_filled, state.layers)),
            document=jnp.zeros_like(state.document),
        )
    vocab = model.config.model.vocab_size
    text = jax.random.randint(jax.random.key(1), (windows, 1, length), 1, vocab)

    @jax.jit
    def read(params, state):
        def window(state, tokens):
            return model.functions.apply(params, tokens, jnp.zeros_like(tokens), state).state, None

        return jax.lax.scan(window, state, text)[0]

    return read(params, state)


def _filled(cache: Cache) -> Cache:
    k, v = jax.random.normal(jax.random.key(2), (2, *cache.old.k.shape), cache.old.k.dtype)
    return cache._replace(old=Seen(k, v, jnp.ones_like(cache.old.live)))


def alternate(programs: dict[Hashable, Callable[[], None]], rounds: int) -> dict:
    """The median seconds of each program over the rounds, after one that is not timed."""
    times = {key: [] for key in programs}
    for run in programs.values():
        run()
    for _ in range(rounds):
        for key, run in programs.items():
            start = time.perf_counter()
            run()
            times[key].append(time.perf_counter() - start)
    return {key: statistics.median(seconds) for key, seconds in times.items()}
