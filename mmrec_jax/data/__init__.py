"""Text to tokens to batches: sources, tokenizers, the token cache, the order of the windows.

Nothing here depends on the model. A batch consists of NumPy arrays and is a function of the step.
"""
