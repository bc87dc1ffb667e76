"""MM-Rec in JAX: a language model with a gated recurrence and three memories."""

import os

from mmrec_jax import runtime

if not os.environ.get("MMREC_GIVE_MEMORY_BACK"):
    runtime.keep_freed_memory()


def load(workdir, checkpoint: str = "best"):
    """The model of a run, for use in Python: see `mmrec_jax.language_model`."""
    from mmrec_jax.language_model import load  # JAX is imported only where it is needed

    return load(workdir, checkpoint)
