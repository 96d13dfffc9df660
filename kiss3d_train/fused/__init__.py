"""Flux's blocks for training an adapter: the same arithmetic in fewer, larger operations."""
