"""A fallback for bestiary: transformers' own modules behind the same engine."""
