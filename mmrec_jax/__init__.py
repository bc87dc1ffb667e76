"""MM-Rec in JAX: a language model with a gated recurrence and three memories."""

import os

from mmrec_jax import runtime

if not os.environ.get("MMREC_GIVE_MEMORY_BACK"):
    runtime.keep_freed_memory()
