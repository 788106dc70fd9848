"""The loop of a run. Neither Ray nor torch."""
