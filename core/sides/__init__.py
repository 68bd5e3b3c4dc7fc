"""Two ways to run one model, side by side on the same tokens: what transformers has, and what an engine has."""
