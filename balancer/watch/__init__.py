"""A run as it goes on, from its files alone: any machine that reads them can watch."""
