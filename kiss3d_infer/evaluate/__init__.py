"""How good a mesh or a bundle is, by itself and against a true one.

docs/metrics.md defines every number.
"""

from kiss3d_infer.evaluate.bundles import bundle_psnr, view_agreement
from kiss3d_infer.evaluate.compare import PAPER_PROTOCOL, CompareOptions, compare
from kiss3d_infer.evaluate.health import mesh_health

__all__ = [
    "PAPER_PROTOCOL",
    "CompareOptions",
    "bundle_psnr",
    "compare",
    "mesh_health",
    "view_agreement",
]
