"""The log: numbered fragments, each created once and never changed."""
