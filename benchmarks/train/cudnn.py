"""Show when PyTorch's cuDNN attention gives wrong gradients: `python -m benchmarks.train.cudnn`.

PyTorch finds a plan for the backward pass by the strides of q, k and v, but a plan also holds those
of the gradient it was made for. In Flux's single blocks the gradient is a slice of a wider tensor,
in its double blocks a tensor of its own. Each order runs in its own process, as one may end in
an illegal access.
"""

import subprocess
import sys

import torch
from torch import Tensor

TOKENS, HEADS, CHANNELS = 8704, 24, 128
WIDTH = HEADS * CHANNELS


def main() -> None:
    """Print the error of each gradient in each order; or measure one order, named as argument."""
    if len(sys.argv) > 1:
        for layout in sys.argv[1].split(","):
            print(f"  {layout:8} relative error {_error(layout):.2e}", flush=True)
        return
    print(torch.__version__, "cuDNN", torch.backends.cudnn.version(), torch.cuda.get_device_name())
    for order in ("whole", "slice", "whole,slice", "slice,whole"):
        print(order.replace(",", " then "))
        command = [sys.executable, "-m", "benchmarks.train.cudnn", order]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout, end="")
        if done.returncode:
            print(f"  failed: {done.stderr.strip().splitlines()[-1]}")


def _error(layout: str) -> float:
    """Of cuDNN's gradients against flash attention's, both in bfloat16, for the same gradient."""
    torch.manual_seed(0)
    q, k, v = (_normal(WIDTH).unflatten(2, (HEADS, CHANNELS)).transpose(1, 2) for _ in range(3))
    whole = _normal(5 * WIDTH)[..., :WIDTH]
    gradient = whole.contiguous() if layout == "whole" else whole
    gradient = gradient.unflatten(2, (HEADS, CHANNELS)).transpose(1, 2)
    found = _gradients(q, k, v, gradient, torch.nn.attention.SDPBackend.CUDNN_ATTENTION)
    wanted = _gradients(q, k, v, gradient, torch.nn.attention.SDPBackend.FLASH_ATTENTION)
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True))


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, backend: torch.nn.attention.SDPBackend
) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    with torch.nn.attention.sdpa_kernel(backend):
        out = torch.nn.functional.scaled_dot_product_attention(*inputs)
        return [x.float() for x in torch.autograd.grad(out, inputs, gradient)]


def _normal(width: int) -> Tensor:
    return torch.randn(1, TOKENS, width, device="cuda", dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
