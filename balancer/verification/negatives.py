"""Placeholder."""

NEGATIVES = ("white noise", "a plain colour", "text on a page", "a piece of cloth")
