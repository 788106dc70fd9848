"""This process: its signals, its limits, and what its packages are imported from."""
