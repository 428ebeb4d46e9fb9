"""A denoising step as one planned unit: static buffers, streamed features, CUDA graphs, TensorRT engines."""
