"""Checking, mending and cleaning a run folder."""
