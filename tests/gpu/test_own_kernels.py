"""The SDK's own kernels on a CUDA device, as a plugin checks its kernels. No mark skips them where there is none."""

import pytest

from bestiary.testing import KernelConformance

pytestmark = pytest.mark.gpu


class TestOwnKernels(KernelConformance):
    distribution = "bestiary"
    devices = ("cuda",)
