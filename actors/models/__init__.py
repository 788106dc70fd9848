"""Generators, verifiers and writers. No Ray."""
