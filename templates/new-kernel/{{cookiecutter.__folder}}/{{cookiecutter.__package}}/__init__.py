"""Kernels for {{ cookiecutter.op }}."""
