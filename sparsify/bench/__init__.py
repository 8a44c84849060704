"""Measuring inference: every runtime in a process of its own, outputs compared first, turn by turn."""
