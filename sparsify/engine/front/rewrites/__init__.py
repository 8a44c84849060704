"""Passes over a Program, by subject; `passes.py` holds the list."""
