"""Everything that needs Ray or a model. A file here imports Ray or torch, never both."""
