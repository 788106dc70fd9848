"""The memory of a GPU: what a process may take, and how many images fit."""
