"""The core's operations: declarations with their torch references. Kernels are registered, never named here."""
