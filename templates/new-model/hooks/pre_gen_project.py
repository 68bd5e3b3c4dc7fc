"""Refuse a name that can't be a Python package; bestiary new has checked more than this before."""

import keyword
import re
import sys

name = {{ cookiecutter.name | tojson }}
if not re.fullmatch("(?!test)[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or name in sys.stdlib_module_names:
    sys.exit(
        f"{name!r} can't be the plugin's name: use lower-case letters, digits and underscores, and no word of Python; "
        "what begins with test, pytest would take for tests"
    )
