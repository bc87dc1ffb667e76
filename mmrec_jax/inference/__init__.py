"""A trained model in use: generation, sessions, a look inside, and `mmrec_jax.load`.

Nothing here trains, and nothing here is needed for training.
"""
