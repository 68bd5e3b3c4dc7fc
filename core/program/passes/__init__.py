"""Passes over a step program, in the order the build runs them: shard, taps, cut, merge, quantize, fuse."""
