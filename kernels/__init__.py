"""Triton kernels: one file an op, under its stem in `scorefusion.ops`. Importing this needs no Triton."""
