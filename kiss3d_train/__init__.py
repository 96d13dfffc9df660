"""Meshes in, LoRA out: bundle data sets and distributed fine-tuning of the Flux transformer."""
