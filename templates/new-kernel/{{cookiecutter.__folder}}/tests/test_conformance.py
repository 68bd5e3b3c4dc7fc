"""Each kernel on the shapes, dtypes and tolerances of its op's declaration, in a process of its own."""

from bestiary.testing import KernelConformance


class TestKernels(KernelConformance):
    distribution = "{{ cookiecutter.__distribution }}"
