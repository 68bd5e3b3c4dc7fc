"""The op keeps its declaration, and each of its kernels keeps the op's, in a process of its own."""

from bestiary.testing import KernelConformance


class TestOp(KernelConformance):
    distribution = "{{ cookiecutter.__distribution }}"
