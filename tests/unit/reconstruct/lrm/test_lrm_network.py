import hashlib
import math

import pytest
import torch
from torch.nn import functional

from kiss3d_infer.reconstruct.lrm.network import Lrm, plane_features

# From a dump of the published class's state dict (PRM with its inference configuration, as
# Kiss3DGen ships it): the digest is over the sorted lines "name 1x2x3", joined by newlines.
NUM_TENSORS, NUM_PARAMETERS = 527, 378_681_518
DIGEST = "7ed10c0fdada6e2cba04993cec803f3113ad0ffc089bd280f8c70a70b5fa1f30"


def views_and_cameras(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, config.image_size, config.image_size, generator=generator)
    return images, torch.randn(4, 16, generator=generator)


def test_the_published_sizes_give_the_published_tensors():
    with torch.device("meta"):
        state = Lrm().state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert len(shapes) == NUM_TENSORS
    assert sum(math.prod(shape) for shape in shapes.values()) == NUM_PARAMETERS
    lines = sorted(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DIGEST
    some = {
        "encoder.model.embeddings.position_embeddings": (1, 197, 768),
        "encoder.model.encoder.layer.11.attention.attention.query.bias": (768,),
        "encoder.model.encoder.layer.0.adaLN_modulation.1.weight": (3072, 768),
        "encoder.camera_embedder.0.weight": (768, 16),
        "transformer.pos_embed": (1, 3072, 1024),
        "transformer.layers.15.cross_attn.k_proj_weight": (1024, 768),
        "transformer.layers.0.mlp.3.weight": (1024, 4096),
        "transformer.deconv.weight": (1024, 80, 2, 2),
        "synthesizer.decoder.net_weight.0.weight": (64, 1920),
        "synthesizer.decoder.net_material.6.bias": (2,),
    }
    assert {name: shapes[name] for name in some} == some


def test_planes_have_the_configured_size_and_depend_on_every_view_and_camera(tiny_lrm):
    images, cameras = views_and_cameras(tiny_lrm.config)
    planes = tiny_lrm(images, cameras)
    assert planes.shape == (3, 6, 16, 16)
    assert torch.equal(planes, tiny_lrm(images, cameras))
    for view in range(4):
        other_images, other_cameras = images.clone(), cameras.clone()
        other_images[view] = 1 - images[view]
        other_cameras[view] += 1
        assert not torch.allclose(planes, tiny_lrm(other_images, cameras), atol=1e-5)
        assert not torch.allclose(planes, tiny_lrm(images, other_cameras), atol=1e-5)


def test_the_encoder_without_modulation_is_transformers_vit(tiny_lrm, tmp_path):
    """`ViTModel` is read from a file with the names that DINO was published under."""
    from safetensors.torch import save_file
    from transformers import ViTConfig, ViTModel

    sizes, encoder = tiny_lrm.config, tiny_lrm.encoder
    side = sizes.position_grid * sizes.patch_size
    ViTConfig(
        hidden_size=sizes.encoder_dim,
        num_hidden_layers=sizes.encoder_layers,
        num_attention_heads=sizes.encoder_heads,
        intermediate_size=4 * sizes.encoder_dim,
        image_size=side,
        patch_size=sizes.patch_size,
        layer_norm_eps=1e-12,
    ).save_pretrained(tmp_path)
    state = encoder.model.state_dict()
    plain = {name: tensor for name, tensor in state.items() if "adaLN" not in name}
    save_file(plain, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference, info = ViTModel.from_pretrained(
        tmp_path, add_pooling_layer=False, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]

    for name, tensor in state.items():
        if "adaLN" in name:
            tensor.zero_()
    images, cameras = views_and_cameras(sizes)
    images = images[:, :, :side, :side]
    expected = reference.eval()(images * 2 - 1).last_hidden_state
    torch.testing.assert_close(encoder(images, cameras), expected, atol=1e-5, rtol=1e-4)


def test_modulation_shifts_and_scales_the_normed_tokens(tiny_lrm):
    block, dim = tiny_lrm.encoder.model.encoder.layer[0], tiny_lrm.config.encoder_dim
    tokens = torch.randn(1, 5, dim, generator=torch.Generator().manual_seed(1))
    condition = torch.ones(1, dim)
    shift_attention, scale_attention, shift_mlp, scale_mlp = block.adaLN_modulation(condition)[
        0
    ].split(dim)
    between = tokens + block.attention(
        block.layernorm_before(tokens) * (1 + scale_attention) + shift_attention
    )
    normed = block.layernorm_after(between) * (1 + scale_mlp) + shift_mlp
    hidden = functional.gelu(block.intermediate(normed))
    torch.testing.assert_close(block(tokens, condition), between + block.output(hidden))


def test_positions_are_resampled_with_dinos_margin(tiny_lrm):
    embeddings, grid, side = tiny_lrm.encoder.model.embeddings, 3, 9
    row = torch.tensor([0.0, 1.0, 4.0])
    embeddings.position_embeddings[0, 1:] = row.repeat(grid)[:, None]
    embeddings.position_embeddings[0, 0] = -7
    positions = embeddings._positions(side)[0]
    assert positions.shape[0] == 1 + side**2 and (positions[0] == -7).all()

    def cubic(distance, a=-0.75):  # Keys' kernel, with torch's a
        d = abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    for column in range(side):
        place = (column + 0.5) * grid / (side + 0.1) - 0.5
        taps = range(math.floor(place) - 1, math.floor(place) + 3)
        expected = sum(float(row[min(max(k, 0), 2)]) * cubic(place - k) for k in taps)
        assert positions[1:].view(side, side, -1)[4, column, 0].item() == pytest.approx(
            expected, abs=1e-4
        )


def test_features_come_from_the_planes_xy_xz_and_zy():
    side = 32
    center = (torch.arange(side) + 0.5) / side * 2 - 1
    along_row, down = center.expand(side, side), center[:, None].expand(side, side)
    planes = torch.stack([along_row, down])[None].repeat(3, 1, 1, 1)
    planes = planes * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None]
    point = torch.tensor([[0.2, -0.4, 0.7]])
    features = plane_features(planes, point)
    expected = torch.tensor([[0.2, -0.4, 2.0, 7.0, 70.0, -40.0]])
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    assert (plane_features(planes, torch.tensor([[0.0, 1.2, 0.0]]))[0, :2] == 0).all()


def test_cube_weights_and_deformations_stay_within_flexicubes_ranges(tiny_lrm):
    decoder, dim = tiny_lrm.synthesizer.decoder, 3 * tiny_lrm.config.triplane_dim
    generator = torch.Generator().manual_seed(0)
    features = 1e4 * torch.randn(50, 8, dim, generator=generator)
    alpha, beta, gamma = decoder.cube_weights(features)
    assert alpha.shape == (50, 8) and beta.shape == (50, 12) and gamma.shape == (50,)
    for weights, low, high in ((alpha, 0.5, 1.5), (beta, 0.5, 1.5), (gamma, 0.25, 0.75)):
        assert low <= weights.min() < weights.max() <= high
    moved = decoder.deformation(features[:, 0])
    assert moved.abs().max() <= 0.25 / tiny_lrm.config.grid_size


def test_beta_alpha_and_gamma_lie_in_this_order_in_the_weights_output(tiny_lrm):
    decoder, dim = tiny_lrm.synthesizer.decoder, 3 * tiny_lrm.config.triplane_dim
    last = decoder.net_weight[6]
    last.weight.zero_()
    last.bias.copy_(torch.arange(21.0))
    alpha, beta, gamma = decoder.cube_weights(torch.zeros(1, 8, dim))
    expected = 1 + 0.5 * torch.tanh(0.1 * torch.arange(20.0))
    torch.testing.assert_close(beta[0], expected[:12])
    torch.testing.assert_close(alpha[0], expected[12:])
    assert gamma[0].item() == pytest.approx(0.25 + 0.5 / (1 + math.exp(-2.0)))
