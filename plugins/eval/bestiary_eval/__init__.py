"""``bestiary eval``: an engine's scores through lm-eval's harness."""
