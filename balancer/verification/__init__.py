"""Verdicts on candidates, the verifier's calibration, typicality, and what tests the verifier."""
