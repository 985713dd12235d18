"""Engines of the sparse convolution: the same voxels, weights and results, whatever computes them."""
