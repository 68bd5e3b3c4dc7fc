"""The step program: a model traced once into a flat list of op calls, passes over it, and kernels bound to it."""
