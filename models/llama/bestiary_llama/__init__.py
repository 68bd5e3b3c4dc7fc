"""The Llama family for bestiary."""
