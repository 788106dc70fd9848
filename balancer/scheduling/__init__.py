"""Which candidate is next, with which words, and when to give up."""
