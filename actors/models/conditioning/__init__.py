"""Generation that starts from real images."""
