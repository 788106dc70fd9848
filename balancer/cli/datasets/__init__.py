"""Commands for a dataset and its config, before a run."""
