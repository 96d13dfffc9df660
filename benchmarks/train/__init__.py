"""Seconds and memory of one optimizer step at FLUX.1-dev's size, beside the public recipe."""
