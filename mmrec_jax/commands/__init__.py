"""What every command needs: flags, errors as one line, process settings.

Also commands: preparing a corpus, making a TensorFlow dataset, and listing all knobs. Nothing here
depends on the model or on runs.
"""
