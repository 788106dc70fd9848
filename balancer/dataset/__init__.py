"""A dataset of real images: audit, metadata tables, splits, leaks, near-duplicates."""
