"""What ``bestiary.testing`` offers: the checks that every plugin of a kind must pass."""
