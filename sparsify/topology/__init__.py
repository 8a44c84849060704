"""Which weights exist: masks, distributions, exact selection, update schedules and what sparsity costs."""
