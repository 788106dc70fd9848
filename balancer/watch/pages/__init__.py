"""The live page, and the files that it loads."""
