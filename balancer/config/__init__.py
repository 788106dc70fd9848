"""The config of a run: its model, where it is loaded from, and what is wrong with it."""
