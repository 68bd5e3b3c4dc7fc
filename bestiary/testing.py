"""What plugins' own tests hold kernels and ops to.

A kernel plugin's whole test, each kernel in each dtype on each device that is here, in a process of its own:

class TestKernels(KernelConformance): distribution = "bestiary-fast-norms"
"""

from bestiary.core.conformance.kernel_cases import KernelCase, OpCase, kernel_cases, load_plugins, op_cases
from bestiary.core.conformance.kernel_conformance import KernelConformance, check_kernel, check_op

__all__ = [
    "KernelCase",
    "KernelConformance",
    "OpCase",
    "check_kernel",
    "check_op",
    "kernel_cases",
    "load_plugins",
    "op_cases",
]
