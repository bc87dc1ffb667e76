"""The files of a run: its workdir, checkpoints, metrics and provenance.

Nothing here trains or depends on what the files are used for.
"""
