"""Synthetic subjects: aligned contrasts of deformed tissue maps, with their labels."""
