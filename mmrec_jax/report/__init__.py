"""Results of a run for people to read: the report page, plots, and tables of the commands.

No other part of mmrec_jax imports from this package.
"""
