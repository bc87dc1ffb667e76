"""Other language models, to compare MM-Rec with: same data, loop, optimizer and parameters.

    python -m benchmarks.peers --help

The package `mmrec_jax` imports nothing from here.
"""
