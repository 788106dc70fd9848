"""From counts and targets to a quota for every cell."""
