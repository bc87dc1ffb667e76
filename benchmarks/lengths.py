"""Times the training step at several lengths of the text, beside a Transformer's and an LSTM's.

    python -m benchmarks.lengths                                   # tiny: 2,048 tokens per step
    python -m benchmarks.lengths --tokens=8192 --lengths=256,8192  # for a GPU

A step has as many tokens at each length, so a longer text means fewer of them. MM-Rec is timed with
its recurrence by the scan and, beyond one interval of it, in parallel; the other models (see
benchmarks/peers) have as many parameters, within 5%. All take turns, so that drift in the machine's
speed affects all of them. On devices that mmrec_jax/learning/hardware.py knows, a column gives
what step_time.py estimates.
"""

import dataclasses

from absl import flags
from ml_collections import config_flags

from mmrec_jax.commands import cli

_CONFIG = config_flags.DEFINE_config_file("config", "configs/tiny.py", "Config of MM-Rec.")
_TOKENS = flags.DEFINE_integer("tokens", 2_048, "Tokens per step.", lower_bound=1)
_LENGTHS = flags.DEFINE_list("lengths", "256,1024,2048", "Lengths of the texts, in tokens.")
_MODELS = flags.DEFINE_list("models", "transformer,lstm", "Models beside MM-Rec, or none.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds of the measurement.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of each model per round.", lower_bound=1)


def main():
    import jax

    from mmrec_jax.config import from_mapping
    from mmrec_jax.errors import UserError
    from mmrec_jax.tables import print_table

    config = from_mapping(_CONFIG.value)
    device = jax.devices()[0]
    title = f"{config.name}, {config.model.dtype}, on {device.device_kind} (jax {jax.__version__})"
    rows = []
    for length in _LENGTHS.value:
        if not length.isdecimal() or int(length) < 1:
            raise UserError(f"--lengths has {length!r}; give numbers of tokens")
        rows += _measure(config, int(length), device)
    names = ("tokens", "model", "sizes", "ms per step", "tokens/s", "times the first")
    print_table((*names, "estimated, ms"), rows, texts=3, wide=True, title=title)


def _measure(config, length: int, device):
    """The rows of the table for texts of `length` tokens."""
    from benchmarks.peers import models, speed
    from mmrec_jax.errors import UserError
    from mmrec_jax.learning.hardware import figures
    from mmrec_jax.learning.step_time import step_time

    count, rest = divmod(_TOKENS.value, length)
    if rest or not count:
        raise UserError(f"--tokens={_TOKENS.value} is not a multiple of {length} in --lengths")
    train = dataclasses.replace(
        config.train, batch_size=count, seq_len=length, carry_memory=False, accumulate_steps=1
    )
    forms = ["scan", *(["parallel"] if length > config.model.recurrence_interval else [])]
    compared = []
    for form in forms:
        shape = dataclasses.replace(config.model, recurrence=form)
        ours = models.our_model("mmrec", dataclasses.replace(config, model=shape, train=train))
        compared.append(ours._replace(name=f"mmrec, {form}"))
    others = [name for name in _MODELS.value if name]
    compared += models.build(others, compared[0].config, config.model.seen_tokens)

    batches = _random_batches(config.model.vocab_size, train, _STEPS.value)
    seconds = speed.training_seconds(compared, batches, _ROUNDS.value, _STEPS.value)
    known, first = figures(device), seconds[compared[0].name]
    for model in compared:
        time = seconds[model.name]
        estimated = known and model.name.startswith("mmrec") and step_time(model.config, known)
        yield (
            f"{count} x {length:,}",
            model.name,
            model.sizes,
            f"{1e3 * time:.1f}",
            f"{_TOKENS.value / time:,.0f}",
            f"{time / first:.2f}",
            f"{1e3 * estimated.total:.1f}" if estimated else "",
        )


def _random_batches(vocab_size: int, train, count: int):
    """Batches of random tokens, each row one document."""
    import numpy as np

    from mmrec_jax.data.windows import Batch

    random, shape = np.random.default_rng(0), (train.batch_size, train.seq_len)
    text = random.integers(1, vocab_size, (count, shape[0], shape[1] + 1), np.int32)
    documents, weights = np.zeros(shape, np.int32), np.ones(shape, np.float32)
    fresh = np.ones(train.batch_size, bool)
    return [Batch(x[:, :-1], documents, x[:, 1:], weights, fresh) for x in text]


if __name__ == "__main__":
    cli.run(main, keeps_memory=True)
