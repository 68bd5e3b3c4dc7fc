"""The checkpoint: a directory with a manifest, weights in safetensors under the zoo's names, and the tokenizer's files."""

from bestiary.core.checkpoint.checkpoint import Checkpoint, is_checkpoint
from bestiary.core.checkpoint.manifest import FileDigest, Manifest
from bestiary.core.checkpoint.transaction import new_directory
from bestiary.core.checkpoint.verify import VerifyReport, verify
from bestiary.core.checkpoint.weights import Weights

__all__ = [
    "Checkpoint",
    "FileDigest",
    "Manifest",
    "VerifyReport",
    "Weights",
    "is_checkpoint",
    "new_directory",
    "verify",
]
