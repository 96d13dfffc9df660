"""Values of covered pixels carried on over the uncovered ones."""

import torch
from scipy import ndimage
from torch import Tensor


def spread(image: Tensor, covered: Tensor) -> Tensor:
    """Give every uncovered pixel the value of the nearest covered one.

    Args:
        image: [H, W, C].
        covered: [H, W] bool; if none is, the image comes back as it is.
    """
    if not covered.any():
        return image
    row, column = ndimage.distance_transform_edt(
        ~covered.cpu().numpy(), return_distances=False, return_indices=True
    )
    return image[torch.from_numpy(row).long(), torch.from_numpy(column).long()]
