"""Sparse 3D convolution on periodic cells and in open space, in plain torch: the same code on a CPU and on a GPU."""
