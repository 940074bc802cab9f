"""CUDA kernels for attention and Mixture-of-Experts, written in notebooks: torch tensors in and out, no build step."""

__version__ = "0.1.0"
