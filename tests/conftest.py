"""What all of the SDK's tests share."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models lose more to waiting for a second thread than they win by it, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
