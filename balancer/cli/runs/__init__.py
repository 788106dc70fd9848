"""Commands that make a run and read it."""
