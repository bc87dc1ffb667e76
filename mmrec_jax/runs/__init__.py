"""What a run keeps on disk: its workdir, checkpoints, metrics, and how it was made.

Nothing here trains, and nothing here knows what the files will be used for.
"""
