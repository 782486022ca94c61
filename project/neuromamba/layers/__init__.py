"""Layers on tensors: Mamba2 and its scan, RMSNorm, LoRA, packing."""
