"""Memory, FLOP and time of a step before it runs."""
