"""Verdicts on candidates, the verifier's calibration, and the pre-flight that tests the verifier."""
