"""What makes a candidate accepted, and whether the verifier can be believed."""
