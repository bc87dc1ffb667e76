"""Training from the first step to the last: loop, hooks, growth, ladder and display.

The arithmetic is in `learning`, and the files are in `runs`. The commands write the reports.
"""
