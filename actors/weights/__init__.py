"""Which files a model is loaded from, and which models are refused. No Ray."""
