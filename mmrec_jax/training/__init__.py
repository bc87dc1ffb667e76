"""A run from its first step to its last: the loop, its hooks, growing, the ladder, the display.

The arithmetic is in `learning`, the files are in `runs`. Reports are written by the commands.
"""
