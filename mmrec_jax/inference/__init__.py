"""Use of a trained model: generation, sessions, inspection, and `mmrec_jax.load`.

Nothing here trains or is needed for training.
"""
