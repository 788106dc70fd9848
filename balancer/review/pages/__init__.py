"""The page on which people review, and the files that it loads."""
