"""The definition of every operation, in plain PyTorch: one file an op, the same stem as in `scorefusion.ops`."""
