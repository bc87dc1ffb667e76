"""Faults that runs have to survive: a storm of them, and a long run."""
