"""Image metrics and distances between sets."""
