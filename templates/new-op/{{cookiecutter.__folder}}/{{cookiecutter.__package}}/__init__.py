"""The op {{ cookiecutter.name }}::{{ cookiecutter.op }}."""
