"""Turn counts and targets into a quota for every cell."""
