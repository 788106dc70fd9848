"""Signals, resource limits and import paths of this process."""
