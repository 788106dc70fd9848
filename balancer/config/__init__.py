"""The config of a run: schema, loading, error messages."""
