"""Pure functions that combine data and model: loss, optimizer, step, evaluation, cost.

Nothing here prints, draws, or touches a workdir.
"""
