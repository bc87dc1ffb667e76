"""Compares validation loss and step time for several sizes of short- and long-term memory.

    python -m benchmarks.memory_sizes                       # on the generated sentences
    python -m benchmarks.memory_sizes --text=FILE           # on your own text

Each model is tiny with other memory sizes, trained for the same steps on the same batches.
"""

import time

from absl import flags

from mmrec_jax.commands import cli

_TEXT = flags.DEFINE_string("text", "", "A UTF-8 file; by default the tiny config's corpus.")
_STEPS = flags.DEFINE_integer("steps", 378, "Training steps of each model.")
_SIZES = flags.DEFINE_list(
    "sizes",
    ["32/32/0", "16/16/16", "32/32/16", "32/32/32", "32/32/64", "64/32/32", "64/64/64"],
    "S/C/M of each model.",
)


def main():
    import jax

    from configs import tiny
    from mmrec_jax.config import from_mapping
    from mmrec_jax.data.batches import TrainingWindows
    from mmrec_jax.data.dataset import load_dataset
    from mmrec_jax.learning.evaluate import evaluate, make_eval_step
    from mmrec_jax.learning.optimizer import learning_rate_schedule, make_optimizer
    from mmrec_jax.learning.step import init_train_state, make_train_step

    print("    S     C     M   validation loss     ms/step")
    for size in _SIZES.value:
        short_term, chunk_len, long_term = map(int, size.split("/"))
        mapping = tiny.get_config()
        mapping.model.update(short_term=short_term, chunk_len=chunk_len, long_term=long_term)
        if _TEXT.value:
            mapping.data.update(source="text", path=_TEXT.value)
        config = from_mapping(mapping)
        train, dataset = config.train, load_dataset(config)
        batches = TrainingWindows(dataset.train, train.batch_size, train.seq_len, train.seed)
        optimizer = make_optimizer(train, learning_rate_schedule(train, _STEPS.value))
        state = init_train_state(config, optimizer, jax.random.key(train.seed))
        step = make_train_step(config, optimizer).lower(state, batches[0]).compile()
        start = time.perf_counter()
        for index in range(_STEPS.value):
            state, _ = step(state, batches[index])
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - start) / _STEPS.value
        eval_step = make_eval_step(config.model)
        loss = evaluate(eval_step, state.params, dataset.validation, config, False).loss
        print(
            f"{short_term:5} {chunk_len:5} {long_term:5} {loss:17.4f} {seconds * 1e3:11.1f}",
            flush=True,
        )


if __name__ == "__main__":
    cli.run(main)
