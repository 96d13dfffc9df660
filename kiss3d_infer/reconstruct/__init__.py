"""Bundle in, closed and textured mesh out."""

from kiss3d_infer.reconstruct.pipeline import reconstruct, warm_up
from kiss3d_infer.reconstruct.settings import Reconstruction, ReconstructSettings

__all__ = ["ReconstructSettings", "Reconstruction", "reconstruct", "warm_up"]
