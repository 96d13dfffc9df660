"""Cameras, meshes and rendering: the one world frame and scale of the whole system."""
