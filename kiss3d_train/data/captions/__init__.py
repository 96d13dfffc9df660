"""Captions: from what a source says of an object, from its render, or by a vision model.

A stored caption is "clause. attribute, attribute"; beside it, `caption_source` says who wrote it.
"""

from kiss3d_train.data.captions.captioner import Captioner, CaptionSource
from kiss3d_train.data.captions.job import CaptionSummary, caption_samples
from kiss3d_train.data.captions.names import caption_of, clean_name
from kiss3d_train.data.captions.open import CaptionerName, open_captioner

__all__ = [
    "CaptionSource",
    "CaptionSummary",
    "Captioner",
    "CaptionerName",
    "caption_of",
    "caption_samples",
    "clean_name",
    "open_captioner",
]
