"""Flux: load a base and a LoRA, and sample bundle images with diffusers' own pipeline."""
