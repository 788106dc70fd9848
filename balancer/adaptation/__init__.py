"""LoRA adapters trained on a dataset's own images: which images, which captions, and what is kept."""
