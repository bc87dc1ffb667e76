"""A long text for a trained model, shared by benchmarks.depth and benchmarks.sweeps."""

from mmrec_jax.data.dataset import load_dataset
from mmrec_jax.errors import UserError


def first_tokens(run, length: int):
    """Token and document ids [1, length]: the first of the validation split, if it is long enough.

    Otherwise the first of the training split.

    Raises:
        UserError: that is too short as well.
    """
    split = run.split("validation")
    if split.num_tokens < length:
        split = load_dataset(run.config).train
    if split.num_tokens < length:
        raise UserError(f"no split of the run has {length:,} tokens, only {split.num_tokens:,}")
    return tuple(x[None] for x in split.tokens.read(0, length))
