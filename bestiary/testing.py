"""What plugins' own tests hold models, kernels and ops to.

A model plugin's test, each check for each tiny config:

class TestLlama(ModelConformance): model = "llama"; configs = {"gqa": {...}}

A kernel plugin's whole test, each kernel in each dtype on each device that is here, in a process of its own:

class TestKernels(KernelConformance): distribution = "bestiary-fast-norms"
"""

from bestiary.core.conformance.kernel_cases import KernelCase, OpCase, kernel_cases, load_plugins, op_cases
from bestiary.core.conformance.kernel_conformance import KernelConformance, check_kernel, check_op
from bestiary.core.conformance.model import ModelConformance

__all__ = [
    "KernelCase",
    "KernelConformance",
    "ModelConformance",
    "OpCase",
    "check_kernel",
    "check_op",
    "kernel_cases",
    "load_plugins",
    "op_cases",
]
