"""Tokens to logits: the recurrence, the three memories, the block, the language model, growth.

Pure functions and parameter containers. Nothing here depends on text, files, batches or training.
"""
