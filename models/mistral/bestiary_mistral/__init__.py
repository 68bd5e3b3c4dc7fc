"""The Mistral family for bestiary."""
