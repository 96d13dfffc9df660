"""How good a mesh is: against a true one, and by itself. docs/metrics.md defines every number."""

from kiss3d_infer.evaluate.compare import PAPER_PROTOCOL, CompareOptions, compare
from kiss3d_infer.evaluate.health import mesh_health

__all__ = ["PAPER_PROTOCOL", "CompareOptions", "compare", "mesh_health"]
