"""Training: one loop, one step, one run folder."""
