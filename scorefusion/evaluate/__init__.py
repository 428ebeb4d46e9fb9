"""Evaluation: models and baselines on volumes of known truth, subject by subject, with statistics."""
