"""What users ask for, each a short composition of the stages: files in, files out."""

from kiss3d_infer.tasks.bundle_to_mesh import Asset, bundle_to_mesh
from kiss3d_infer.tasks.text_to_3d import text_to_3d

__all__ = ["Asset", "bundle_to_mesh", "text_to_3d"]
