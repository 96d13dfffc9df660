"""Whole parts on a GPU: compiled blocks and bfloat16 give the gradients of plain float32."""

from pathlib import Path

import pytest
import torch
from tiny_data import TILE, bundle_of, make_base
from torch import nn

from kiss3d_infer.flux.base import load_base
from kiss3d_train.engine import LossFn
from kiss3d_train.whole.autoencoder import PictureBatch, WholeVae, vae_losses
from kiss3d_train.whole.flux import WholeFlux, view_losses
from kiss3d_train.whole.views import ViewBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("without_cudnn_attention"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def gradients(model: nn.Module, loss_fn: LossFn, batch: object, autocast: bool) -> torch.Tensor:
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        loss = loss_fn(model, batch).mean()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_transformer_learns_as_in_float32(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    batch = ViewBatch(
        torch.randn(4, 4, 16, device="cuda"),
        torch.randn(4, 4, 16, device="cuda"),
        torch.tensor([0.1, 0.4, 0.6, 0.9], device="cuda"),
        torch.randint(3, 500, (4, 32), device="cuda"),
        (2, 2),
    )
    plain, fast = (
        gradients(
            WholeFlux(
                load_base(base, dtype="float32", device="cuda"),
                ("transformer", "text_encoder", "text_encoder_2"),
                1.0,
                "",
                compiled=is_fast,
            ).cuda(),
            view_losses,
            batch,
            is_fast,
        )
        for is_fast in (False, True)
    )
    assert torch.cosine_similarity(plain, fast, dim=0) > 0.99
    assert fast.norm().item() == pytest.approx(plain.norm().item(), rel=0.05)


def test_the_autoencoder_learns_as_in_float32_and_stays_small(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    pictures = torch.stack([bundle_of(n).image[:, :TILE, :TILE] for n in range(8)])
    noise = torch.randn(8, 4, TILE // 8, TILE // 8, device="cuda")
    batch = PictureBatch(pictures.mul(255).round().byte().cuda(), noise)
    precisions: list[torch.dtype] = []

    def loss_fn(model: nn.Module, batch: PictureBatch) -> torch.Tensor:
        return vae_losses(model, batch, 1e-4)

    def learned(is_fast: bool) -> torch.Tensor:
        model = WholeVae(load_base(base, dtype="float32", device="cuda", parts=("vae",)).vae)
        model.vae.decoder.conv_norm_out.register_forward_hook(
            lambda _module, _inputs, output: precisions.append(output.dtype)
        )
        return gradients(model, loss_fn, batch, is_fast)

    assert torch.cosine_similarity(learned(False), learned(True), dim=0) > 0.98
    assert precisions == [torch.float32, torch.bfloat16]
