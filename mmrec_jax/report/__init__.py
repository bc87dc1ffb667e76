"""What a person reads of a run: the report page, plots, and the tables of the commands.

Nothing else in the package imports from here.
"""
