"""TensorRT engines of the 2D networks."""
