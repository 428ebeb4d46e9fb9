"""The networks: what a model is (config), the 2D and 3D U-Nets, and how their scores are fused."""
