"""{{ cookiecutter.__class }} for bestiary."""
