"""Commands about a dataset and its config, before there is a run."""
