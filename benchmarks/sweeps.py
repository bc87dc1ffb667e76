"""How many sweeps the parallel recurrence takes in a trained model, and how exact it is.

    python -m benchmarks.sweeps --workdir=runs/tiny
    python -m benchmarks.sweeps --workdir=runs/code --tokens=8192 --interval=16 --interval=128

Reads the first tokens of the validation split, or of the training split if that is too short. A
cell shows the sweeps of a layer and the error of its states, or of the gradients of a weighted sum
of its states with random weights, relative to the largest state or gradient that the scan finds.
"scan" stands for sweeps that did not converge.
"""

from pathlib import Path

from absl import flags

from mmrec_jax.commands import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_TOKENS = flags.DEFINE_integer("tokens", 1024, "Length of the sequence.", lower_bound=64)
_INTERVAL = flags.DEFINE_multi_integer("interval", [1, 16, 64], "Steps per interval.")
_SWEEPS = flags.DEFINE_integer("sweeps", 32, "Sweeps after which the scan is used.", lower_bound=1)

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def main():
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from benchmarks.trained import first_tokens
    from mmrec_jax.model.lm import init_state
    from mmrec_jax.model.memory import Segments
    from mmrec_jax.model.over_time import NO_EFFORT, Shooting, serial
    from mmrec_jax.model.params import model_graph
    from mmrec_jax.model.recurrence import recurrence
    from mmrec_jax.runs.workdir import open_run
    from mmrec_jax.tables import print_table

    run = open_run(Path(_WORKDIR.value))
    config = run.config.model
    length = _TOKENS.value // config.chunk_len * config.chunk_len
    params = run.params(run.checkpoints.resolve("best"))
    tokens, documents = first_tokens(run, length)

    @jax.jit
    def cores(params):
        """The inputs of the recurrence of each layer."""
        model, state = nnx.merge(model_graph(config), params), init_state(config, 1)
        start = jnp.diff(documents, prepend=-1) != 0
        short = jnp.full((1, config.short_term), -1)
        segments = Segments(start, jnp.cumsum(start, axis=1, dtype=jnp.int32), short)
        x, found = model.embedding(tokens), []
        for block, layer_state in zip(model.blocks, state.layers, strict=True):
            weights = block.split_weights()
            _, k, _, z, _ = block.project(block.norm1(x), weights)
            found.append((*block.core(z, block.decay(z, k), weights), layer_state.h, start))
            x, _, _ = block(x, segments, layer_state)
        return found

    def solve(core, weights, how):
        def states(core, of_gradient):
            return recurrence(*core, config.mu, how, of_gradient)

        (h, effort), vjp = jax.vjp(states, core, NO_EFFORT)
        gradients, of_gradient = vjp((weights, NO_EFFORT))
        return h, effort, gradients[:2], of_gradient

    def cell(effort, found, expected):
        def error(x, reference):
            return jnp.max(jnp.abs(x - reference)) / jnp.max(jnp.abs(reference))

        worst = max(jax.tree.leaves(jax.tree.map(error, found, expected)))
        return f"{'scan' if effort.scans else int(effort.sweeps)} ({worst:.0e})"

    solve = jax.jit(solve, static_argnames="how")
    layers = cores(params)
    weights = np.random.default_rng(0).standard_normal(layers[0][0].z.shape).astype(np.float32)
    print(f"{_WORKDIR.value}, {length:,} tokens")
    for interval in _INTERVAL.value:
        rows = []
        for index, core in enumerate(layers):
            h, _, gradients, _ = solve(core, weights, serial)
            forward, backward = [f"{index}", "states"], ["", "gradients"]
            for tolerance in TOLERANCES:
                found = solve(core, weights, Shooting(interval, tolerance, _SWEEPS.value))
                forward.append(cell(found[1], found[0], h))
                backward.append(cell(found[3], found[2], gradients))
            rows += [forward, backward]
        names = ("layer", "", *(f"{tolerance:.0e}" for tolerance in TOLERANCES))
        title = f"sweeps (error) by tolerance, {interval} steps per interval"
        print_table(names, rows, texts=2, wide=True, title=title)


if __name__ == "__main__":
    cli.run(main)
