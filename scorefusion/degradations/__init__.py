"""How a measurement comes about: linear operators, their adjoints and pseudo-inverses."""
