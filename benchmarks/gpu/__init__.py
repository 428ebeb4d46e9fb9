"""One command that measures a GPU: ``python -m benchmarks.gpu --out FILE``."""
