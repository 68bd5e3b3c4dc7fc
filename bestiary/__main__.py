"""``python -m bestiary``: the command, where its script is not on the path."""

from bestiary.core.cli.main import main

if __name__ == "__main__":
    main()
