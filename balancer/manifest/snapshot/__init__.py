"""The compacted copy, and rows as an Arrow dataset."""
