"""Qwen1.5-MoE and Qwen2-MoE."""
