"""Pure functions of arrays that data and model meet in: loss, optimizer, step, evaluation, cost.

Nothing here prints, draws, or touches a workdir.
"""
