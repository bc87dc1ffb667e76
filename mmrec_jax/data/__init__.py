"""Text to tokens to batches: sources, tokenizers, the token cache, the order of the windows.

Nothing here knows of the model; a batch is NumPy arrays and a function of the step number.
"""
