"""A dataset of real images: what is in it, how it is split, and what of it is the same."""
