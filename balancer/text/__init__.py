"""Text from and for people: names, numbers in sentences, and what is safe to show."""
