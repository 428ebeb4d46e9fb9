"""Datasets on disk: who is in them, which files are theirs, and whether these can be used together."""
