"""MM-Rec in JAX: a language model with a gated recurrence and three memories."""

from mmrec_jax import runtime

runtime.keep_freed_memory()
