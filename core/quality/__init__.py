"""How near one model's predictions are to another's over a text: perplexity, divergence, agreement."""
