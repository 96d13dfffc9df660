"""Reconstruction from exact and from perturbed bundles: accuracy, texture, seconds, throughput."""
