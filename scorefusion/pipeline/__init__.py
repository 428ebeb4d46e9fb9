"""From an image to its translation."""
