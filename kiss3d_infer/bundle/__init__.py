"""The 3D bundle image: the one contract between training, generation and reconstruction."""

from kiss3d_infer.bundle.image import Bundle, encode_image, load_bundle, opened_image, save_bundle
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout, Domains
from kiss3d_infer.bundle.masks import silhouettes
from kiss3d_infer.bundle.validate import BundleReport, validate

__all__ = [
    "PUBLISHED",
    "Bundle",
    "BundleLayout",
    "BundleReport",
    "Domains",
    "encode_image",
    "load_bundle",
    "opened_image",
    "save_bundle",
    "silhouettes",
    "validate",
]
