"""Which rendered samples are fit to train on: figures, named filters, subsets, orientation."""

from kiss3d_train.data.curation.config import CurationConfig
from kiss3d_train.data.curation.job import curate
from kiss3d_train.data.curation.record import (
    CURATION_NAME,
    Curation,
    Decision,
    accepted_only,
    read_curation,
)

__all__ = [
    "CURATION_NAME",
    "Curation",
    "CurationConfig",
    "Decision",
    "accepted_only",
    "curate",
    "read_curation",
]
