"""The HTTP service: a Ray Serve app that turns prompts and bundles into textured meshes."""
