"""Everything that needs Ray or a model. A file here imports Ray or torch, never both."""

import os

# Read once, when diffusers and transformers are imported, and that is in more than one file.
os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
os.environ.setdefault("USE_HUB_KERNELS", "NO")
