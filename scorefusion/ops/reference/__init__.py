"""The definition of every operation in plain PyTorch: one file an op, under its stem in `scorefusion.ops`."""
