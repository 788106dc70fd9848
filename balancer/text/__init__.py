"""Names, numbers in sentences, and text that is safe to print."""
