"""Models that look at images: the verifier's own encoder, and another beside it."""
