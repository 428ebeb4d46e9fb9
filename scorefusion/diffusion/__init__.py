"""Noise schedules, solvers as tables, the sampling loop and data consistency."""
