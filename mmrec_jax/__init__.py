"""MM-Rec in JAX: a language model with a gated recurrence and three memories."""


def load(workdir, checkpoint: str = "best"):
    """Loads the model of a run for use in Python: see `mmrec_jax.inference.language_model`."""
    from mmrec_jax.commands.compiled_programs import keep_compiled
    from mmrec_jax.inference.language_model import load  # imports JAX only when it is needed

    keep_compiled()
    return load(workdir, checkpoint)
