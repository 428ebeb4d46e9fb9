"""Benchmarks: a package, so that they can have the same names as the tests."""
