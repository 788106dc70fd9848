"""Real images that candidates are made from: which may be, and which one each candidate gets."""
