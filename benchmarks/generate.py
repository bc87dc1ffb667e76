"""Measures generation speed early and late in a text, and when the text is reread for each token.

    python -m benchmarks.generate                      # tiny, with fresh parameters
    python -m benchmarks.generate --far=1000000

Rounds at the two positions alternate, so that drift in the machine's speed affects both.
"""

import statistics
import time

from absl import flags
from ml_collections import config_flags

from mmrec_jax.commands import cli

_CONFIG = config_flags.DEFINE_config_file("config", "configs/tiny.py", "Config to measure.")
_NEAR = flags.DEFINE_integer("near", 1_000, "First position, in tokens.")
_FAR = flags.DEFINE_integer("far", 100_000, "Second position, in tokens.")
_TOKENS = flags.DEFINE_integer("tokens", 100, "Tokens per round.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds at each position.")


def main():
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from mmrec_jax.config import from_mapping
    from mmrec_jax.inference.generation import Generator, Sampling
    from mmrec_jax.model.params import init_params, model_graph

    config = from_mapping(_CONFIG.value).model
    params = init_params(config, jax.random.key(0))
    generator = Generator(config, params, range(config.vocab_size))
    random = np.random.default_rng(0)
    text = random.integers(1, config.vocab_size, _FAR.value).astype(np.int32)

    def write(session):
        start = time.perf_counter()
        *_, (_, after) = generator.write(session, _TOKENS.value, Sampling())
        jax.block_until_ready(after())
        return (time.perf_counter() - start) / _TOKENS.value

    sessions = {}
    for position in (_NEAR.value, _FAR.value):
        start = time.perf_counter()
        sessions[position] = generator.read(generator.start(), [text[:position]])
        jax.block_until_ready(sessions[position])
        print(f"read {position:,} tokens in {time.perf_counter() - start:.1f} s")
        write(sessions[position])

    # Generation without a state: the whole-sequence form reads the complete text for every token.
    length = -(-_NEAR.value // config.chunk_len) * config.chunk_len
    graph, documents = model_graph(config), jnp.zeros((1, length), jnp.int32)

    @jax.jit
    def read_again(params, tokens):
        logits = nnx.merge(graph, params)(tokens, documents).logits
        return jnp.argmax(logits[:, _NEAR.value - 1], axis=-1)

    again = jnp.asarray(np.resize(text, (1, length)))
    jax.block_until_ready(read_again(params, again))

    times = {position: [] for position in sessions}
    again_times = []
    for _ in range(_ROUNDS.value):
        for position, session in sessions.items():
            times[position].append(write(session))
        start = time.perf_counter()
        for _ in range(5):
            jax.block_until_ready(read_again(params, again))
        again_times.append((time.perf_counter() - start) / 5)

    speeds = {position: 1 / statistics.median(rounds) for position, rounds in times.items()}
    for position, speed in speeds.items():
        state = sum(x.nbytes for x in jax.tree.leaves(sessions[position].state))
        print(f"at position {position:,}: {speed:,.0f} tokens/s, {state:,} bytes of state")
    print(f"ratio of the speeds: {speeds[_FAR.value] / speeds[_NEAR.value]:.2f}")
    again_speed = 1 / statistics.median(again_times)
    print(
        f"rereading {_NEAR.value:,} tokens for each token: {again_speed:,.0f} tokens/s; "
        f"with the state, {speeds[_NEAR.value] / again_speed:.1f} times as fast"
    )


if __name__ == "__main__":
    cli.run(main, keeps_memory=True)
