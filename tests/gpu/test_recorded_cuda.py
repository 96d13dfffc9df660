"""Recorded passes on a GPU give the results and gradients of passes that are computed."""

from pathlib import Path

import pytest
import torch
from tiny_data import make_base
from torch import Tensor

from kiss3d_infer.flux.base import load_base
from kiss3d_train.recorded import record_passes
from kiss3d_train.whole.flux import WholeFlux, view_losses
from kiss3d_train.whole.views import ViewBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("without_cudnn_attention"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def batch_of(num: int, seed: int) -> ViewBatch:
    generator = torch.Generator("cuda").manual_seed(seed)
    return ViewBatch(
        torch.randn(num, 4, 16, device="cuda", generator=generator),
        torch.randn(num, 4, 16, device="cuda", generator=generator),
        torch.rand(num, device="cuda", generator=generator),
        torch.randint(3, 500, (num, 32), device="cuda", generator=generator),
        (2, 2),
    )


def learned(model: WholeFlux, batch: ViewBatch) -> tuple[Tensor, Tensor]:
    """Loss and all gradients."""
    model.zero_grad()
    loss = view_losses(model, batch).mean()
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach().clone(), torch.cat(grads)


def test_replays_learn_from_new_batches_and_new_weights(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    parts = ("transformer", "text_encoder", "text_encoder_2")
    plain, recorded = (
        WholeFlux(
            load_base(base, dtype="float32", device="cuda"), parts, 1.0, "", compiled=False
        ).cuda()
        for _ in range(2)
    )
    record_passes(recorded)
    # The third batch has another size, and is computed.
    for num, seed in ((4, 0), (4, 1), (3, 2), (4, 3)):
        batch = batch_of(num, seed)
        (loss, grads), (loss_again, grads_again) = learned(plain, batch), learned(recorded, batch)
        assert loss_again.item() == pytest.approx(loss.item(), rel=1e-5)
        assert torch.allclose(grads_again, grads, rtol=1e-3, atol=1e-6)
        with torch.no_grad():
            for model in (plain, recorded):
                model.transformer.x_embedder.weight.mul_(1.5)
                assert view_losses(model, batch).isfinite().all()
