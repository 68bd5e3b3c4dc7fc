"""The SDK's own kernels, in torch: right on every device, quick where torch is. Others come as plugins."""
