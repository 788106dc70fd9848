"""LoRA adapters trained on a dataset's own images: from which images, with which captions, and what is kept."""
