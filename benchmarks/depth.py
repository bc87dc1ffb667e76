"""How many matrix products of a training step have to wait for each other, by sequence length.

    python -m benchmarks.depth --workdir=runs/tiny

Counted in the traced program of a step on one sequence: the longest chain of matrix products, each
of which needs the result of the one before. A loop counts as often as it runs; the sweeps are those
that the trained model takes, per solution, on 32,768 tokens at most. "recurrence" is counted
without a bank, and "bank", which is chosen chunk by chunk, without the recurrence's steps. Then two
programs are compiled for this length, one recurrence with its gradient ("alone") and the complete
step: seconds, and temporaries of the program in MB.
"""

import dataclasses
import time
from pathlib import Path

from absl import flags

from mmrec_jax.commands import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_TOKENS = flags.DEFINE_multi_integer(
    "tokens", [1024, 8192, 32_768, 131_072], "Lengths of the sequence."
)
_INTERVAL = flags.DEFINE_multi_integer("interval", [1, 8, 64], "Steps per interval.")

RUN_AT_MOST = 32_768  # tokens, for the memory that a step takes


def depth(jaxpr, sweeps: int) -> int:
    """The longest chain of matrix products; in a while loop, of this many rounds."""
    from jax.extend.core import Literal

    ready = {}
    for equation in jaxpr.eqns:
        inputs = (x for x in equation.invars if not isinstance(x, Literal))
        before = max((ready.get(x, 0) for x in inputs), default=0)
        name, params = equation.primitive.name, equation.params
        inner = [
            getattr(x, "jaxpr", x)
            for value in params.values()
            for x in (value if isinstance(value, tuple) else (value,))
            if hasattr(getattr(x, "jaxpr", x), "eqns")
        ]
        if name == "cond":  # the other branch is the scan, for sweeps that have failed
            inner = inner[:1]
        times = {"scan": params.get("length"), "while": sweeps}.get(name, 1)
        own = times * max((depth(x, sweeps) for x in inner), default=0)
        own += name == "dot_general"
        ready.update(dict.fromkeys(equation.outvars, before + own))
    return max(ready.values(), default=0)


def main():
    import jax
    import jax.numpy as jnp
    import optax

    from benchmarks.trained import first_tokens
    from mmrec_jax.data.windows import Batch
    from mmrec_jax.learning.optimizer import make_optimizer
    from mmrec_jax.learning.step import abstract_batch, init_train_state, make_train_step
    from mmrec_jax.model.over_time import Shooting, serial
    from mmrec_jax.model.recurrence import CoreInputs, CoreWeights, recurrence
    from mmrec_jax.runs.workdir import open_run
    from mmrec_jax.tables import print_table

    run = open_run(Path(_WORKDIR.value))
    params = run.params(run.checkpoints.resolve("best"))
    layers = run.config.model.num_layers

    def step_of(length, recurrence, interval=1, **more):
        model = dataclasses.replace(
            run.config.model,
            recurrence=recurrence,
            recurrence_interval=interval,
            recurrence_iterations=64,
            remat=False,
            scan_layers="never",
            **more,
        )
        train = dataclasses.replace(
            run.config.train,
            seq_len=length,
            batch_size=1,
            accumulate_steps=1,
            carry_memory=False,
            optimizer="adamw",  # Muon's iterations are a chain of their own
        )
        config = dataclasses.replace(run.config, model=model, train=train)
        optimizer = make_optimizer(train, optax.constant_schedule(0.0))

        def state(params=None):
            return init_train_state(config, optimizer, jax.random.key(0), params)

        return state, make_train_step(config, optimizer)

    def depth_of(length, recurrence, sweeps=0, interval=1, **more):
        state, step = step_of(length, recurrence, interval, **more)
        jaxpr = jax.make_jaxpr(step)(jax.eval_shape(state), abstract_batch(1, length))
        return depth(jaxpr.jaxpr, sweeps)

    def sweeps_of(length, interval):
        """Of a solution, forward or backward, in the mean."""
        state, step = step_of(length, "parallel", interval)
        tokens, documents = first_tokens(run, length)
        weights = jnp.ones(tokens.shape).at[:, -1].set(0)
        batch = Batch(tokens, documents, jnp.roll(tokens, -1, 1), weights, jnp.ones(1, bool))
        _, metrics = step(state(jax.tree.map(jnp.copy, params)), batch)
        failed = " (scan)" if metrics.recurrence_scans else ""
        return float(metrics.recurrence_sweeps) / (2 * layers), failed

    def compiled(fun, *shapes):
        begin = time.perf_counter()
        memory = fun.lower(*shapes).compile().memory_analysis()
        seconds = time.perf_counter() - begin
        return f"{seconds:.1f}", f"{memory.temp_size_in_bytes / 1e6:,.0f}"

    def compiled_recurrence(length, solve):
        dim = run.config.model.dim
        x = jax.ShapeDtypeStruct((1, length, dim), jnp.float32)
        weights = CoreWeights(
            *(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((dim, 2 * dim), (dim,)))
        )
        h0 = jax.ShapeDtypeStruct((1, dim), jnp.float32)
        start = jax.ShapeDtypeStruct((1, length), bool)

        def objective(inputs, weights, h0, start):
            return jnp.sum(recurrence(inputs, weights, h0, start, run.config.model.mu, solve)[0])

        gradient = jax.jit(jax.grad(objective, argnums=(0, 1)))
        return compiled(gradient, CoreInputs(x, x, x), weights, h0, start)

    def compiled_step(length, recurrence, interval=1):
        state, step = step_of(length, recurrence, interval)
        return compiled(step, jax.eval_shape(state), abstract_batch(1, length))

    rows = []
    for length in _TOKENS.value:
        bank = depth_of(length, "parallel") if run.config.model.long_term else 0
        rows.append(
            (
                f"{length:,}",
                "scan",
                "",
                f"{depth_of(length, 'scan', long_term=0):,}",
                f"{bank:,}",
                *compiled_recurrence(length, serial),
                *compiled_step(length, "scan"),
            )
        )
        for interval in _INTERVAL.value:
            sweeps, failed = sweeps_of(min(length, RUN_AT_MOST), interval)
            chain = depth_of(length, "parallel", round(sweeps), interval, long_term=0)
            solve = Shooting(interval, 1e-5, 64)
            row = (
                "",
                f"{interval}",
                f"{sweeps:.1f}{failed}",
                f"{chain:,}",
                "",
                *compiled_recurrence(length, solve),
                *compiled_step(length, "parallel", interval),
            )
            rows.append(row)
    print(f"{_WORKDIR.value}: {layers} layers, D {run.config.model.dim}")
    names = ("tokens", "interval", "sweeps", "recurrence", "bank")
    names += ("alone, s", "MB", "step, s", "MB")
    print_table(names, rows, texts=2, wide=True, title="products that wait, and compiling")


if __name__ == "__main__":
    cli.run(main, cached=False)
