"""What kiss3d-mini draws: class, colour, agreement of views, meshes, seconds and memory."""
