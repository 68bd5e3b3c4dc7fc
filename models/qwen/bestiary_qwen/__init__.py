"""The Qwen family for bestiary."""
