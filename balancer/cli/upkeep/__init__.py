"""Commands that keep a run folder whole and small."""
