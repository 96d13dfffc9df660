"""Meshes to captioned bundles, bundles to shards, shards to the order of training."""
