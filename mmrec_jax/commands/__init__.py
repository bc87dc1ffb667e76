"""What every command needs: flags, errors as one line, settings of the process.

Two commands of their own live here as well: preparing a corpus, and making a TensorFlow dataset.
Nothing here knows of the model or of runs.
"""
