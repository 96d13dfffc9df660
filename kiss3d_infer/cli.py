"""Commands that turn prompts and bundles into assets; the root command lives with training."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kiss3d_infer.mini import NAME as MINI

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from kiss3d_infer.tasks import Asset

Base = Annotated[
    Path, typer.Option("--model", help="Flux base: a diffusers folder or a .safetensors file.")
]
Model = Annotated[
    str,
    typer.Option(
        help="Flux base: a diffusers folder, a .safetensors file, or mini, the packaged one."
    ),
]
Lora = Annotated[
    Path | None, typer.Option("--lora", help="Bundle LoRA (.safetensors); default: the model's.")
]
Seed = Annotated[int, typer.Option(help="The same seed draws the same bundle.")]
# These four default to what the model's maker recommends.
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.")]
Tile = Annotated[int | None, typer.Option(min=16, help="Side of a tile in pixels.")]
Guidance = Annotated[float | None, typer.Option(min=0, help="Distilled guidance.")]
CfgScale = Annotated[
    float | None, typer.Option("--cfg", min=1, help="Classifier-free guidance; 1 is none.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; default: cuda when there is one.")]
Init = Annotated[
    Literal["carve", "hull", "sphere", "mesh", "lrm"], typer.Option(help="Start shape.")
]
# The bounds of ReconstructSettings, which is not imported here: pydantic would slow the start.
Faces = Annotated[
    int, typer.Option(min=100, max=200_000, help="Most triangles; beyond 40,000 it takes long.")
]
TextureSize = Annotated[int, typer.Option(min=64, max=8192, help="Side of the texture in pixels.")]
Force = Annotated[bool, typer.Option("--force", help="Go on although the bundle fails validation.")]


def doctor(
    warm_up: Annotated[
        bool, typer.Option("--warm-up", help="Also compile the CPU kernels now.")
    ] = False,
) -> None:
    """Say what this machine can do: devices, memory, versions, and what is missing."""
    from kiss3d_infer.doctor import print_report

    print_report(warm_up=warm_up)


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, e.g. 'a red wooden chair'.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Bundle image, .png or .webp.")],
    model: Model = MINI,
    lora: Lora = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    cfg_scale: CfgScale = None,
    tile: Tile = None,
    device: Device = "auto",
) -> None:
    """Draw a 3D bundle image from a prompt."""
    from kiss3d_infer.bundle import save_bundle, validate
    from kiss3d_infer.bundle.image import checked_image_format
    from kiss3d_infer.flux.prompt import check_prompt
    from kiss3d_infer.flux.sampling import generate_bundle
    from kiss3d_infer.progress import show_stages

    check_prompt(prompt)
    checked_image_format(out)
    given = {"tile": tile, "steps": steps, "guidance": guidance, "cfg_scale": cfg_scale}
    pipeline, how = _pipeline(model, lora, device, given)
    bundle = generate_bundle(
        pipeline,
        prompt,
        **how,
        seed=seed,
        on_progress=show_stages("generate"),
    )
    save_bundle(bundle, out)
    typer.echo(out)
    for problem in validate(bundle).problems:
        typer.echo(f"  warning: {problem}")


def reconstruct(
    bundle: Annotated[Path, typer.Argument(help="Bundle image, .png or .webp.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Asset: .glb, .usdz, .obj, .ply or .stl.")
    ],
    init: Init = "carve",
    start_mesh: Annotated[
        Path | None, typer.Option("--start-mesh", help="With --init mesh: the mesh to start from.")
    ] = None,
    lrm: Annotated[
        Path | None, typer.Option("--lrm", help="With --init lrm: its .safetensors weights.")
    ] = None,
    faces: Faces = 20_000,
    texture_size: TextureSize = 1024,
    albedo: Annotated[
        bool, typer.Option("--albedo", help="Take the light out of the texture.")
    ] = False,
    normal_map: Annotated[
        bool, typer.Option("--normal-map", help="Bake fine relief into a normal map.")
    ] = False,
    height: Annotated[
        float | None, typer.Option("--height", help="Height in metres; stands it on the ground.")
    ] = None,
    debug: Annotated[
        Path | None, typer.Option("--debug", help="Folder for pictures of every stage.")
    ] = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Turn a bundle image into a textured mesh."""
    from kiss3d_infer.devices import pick_raster_device
    from kiss3d_infer.errors import InputError
    from kiss3d_infer.progress import show_stages
    from kiss3d_infer.reconstruct import ReconstructSettings
    from kiss3d_infer.tasks import bundle_to_mesh

    for name, given in (("mesh", start_mesh), ("lrm", lrm)):
        if (init == name) != (given is not None):
            option = {"mesh": "--start-mesh", "lrm": "--lrm"}[name]
            raise InputError(f"--init {name} and {option} go together", fix="give both or neither")
    asset = bundle_to_mesh(
        bundle,
        out,
        settings=ReconstructSettings(
            init=init if init in ("carve", "hull", "sphere") else "carve",
            num_faces=faces,
            texture_size=texture_size,
            albedo=albedo,
            normal_map=normal_map,
        ),
        device=pick_raster_device(device),
        start_mesh=start_mesh,
        lrm_weights=lrm,
        height_m=height,
        debug=debug,
        force=force,
        on_progress=show_stages("reconstruct"),
    )
    _show(asset)


def text_to_3d(
    prompt: Annotated[str, typer.Argument(help="What to make, e.g. 'a red wooden chair'.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Asset: .glb, .usdz, .obj, .ply or .stl.")
    ],
    model: Model = MINI,
    lora: Lora = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    cfg_scale: CfgScale = None,
    tile: Tile = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Make a textured mesh from a prompt; its bundle is kept beside it."""
    from kiss3d_infer.bundle.image import checked_image_format
    from kiss3d_infer.devices import pick_raster_device
    from kiss3d_infer.flux.prompt import check_prompt
    from kiss3d_infer.progress import show_stages
    from kiss3d_infer.tasks import text_to_3d as make_asset
    from kiss3d_infer.tasks.bundle_to_mesh import check_output

    check_prompt(prompt)
    raster_device = pick_raster_device(device)
    check_output(out, raster_device)
    checked_image_format(out.with_name(f"{out.stem}.bundle.png"))
    given = {"tile": tile, "steps": steps, "guidance": guidance, "cfg_scale": cfg_scale}
    pipeline, how = _pipeline(model, lora, device, given)
    asset = make_asset(
        pipeline,
        prompt,
        out,
        **how,
        seed=seed,
        device=raster_device,
        force=force,
        on_progress=show_stages("text-to-3d"),
    )
    _show(asset)


def convert_lrm(
    checkpoint: Annotated[Path, typer.Argument(help="PRM's final_ckpt.ckpt.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Weights, .safetensors.")],
) -> None:
    """Convert the LRM's published checkpoint, running nothing that its pickle asks for."""
    from kiss3d_infer.reconstruct.lrm.convert import convert

    convert(checkpoint, out)
    typer.echo(out)


def pack_base(
    base: Annotated[Path, typer.Argument(help="Flux base: a diffusers folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to make; used like any other base.")],
) -> None:
    """Store a base's weights as int8 with a scale per row: a quarter of float32's size."""
    from kiss3d_infer.flux.pack import pack_base as pack

    typer.echo(pack(base, out))


def create_random_base(
    config: Annotated[Path, typer.Argument(help="Its parts, e.g. configs/models/mini.")],
    out: Annotated[Path, typer.Argument(help="Diffusers folder to make.")],
    seed: Annotated[int, typer.Option(help="The same seed makes the same weights.")] = 0,
) -> None:
    """Make a whole Flux base with random weights, to be trained."""
    from kiss3d_infer.flux import base

    typer.echo(base.create_random_base(config, out, seed))


def convert_lora(
    lora: Annotated[Path, typer.Argument(help="LoRA of any layout, a file or its folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="LoRA, .safetensors.")],
    to: Annotated[
        Literal["comfyui", "kohya", "x-flux", "diffusers"], typer.Option(help="Its layout.")
    ],
) -> None:
    """Rewrite a LoRA for ComfyUI, kohya's tools, x-flux or diffusers, changing nothing it does."""
    from kiss3d_infer.flux.lora import convert_lora as convert

    convert(lora, out, to)
    typer.echo(out)


def serve(
    config: Annotated[Path, typer.Argument(help="Serving recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a value: --set http.port=9000")
    ] = None,
) -> None:
    """Serve the HTTP API with Ray Serve until interrupted."""
    from kiss3d_infer.serve.run import serve as run_server

    run_server(config, overrides or ())


def _pipeline(
    model: str, lora: Path | None, device: str, given: Mapping[str, float | None]
) -> tuple["FluxPipeline", dict[str, Any]]:
    """The base with the LoRA applied, and what the LoRA draws and how: see `generate_bundle`."""
    from kiss3d_infer.devices import pick_device
    from kiss3d_infer.flux.base import load_base
    from kiss3d_infer.flux.lora import apply_lora
    from kiss3d_infer.flux.models import choose_model

    place = pick_device(device)
    chosen = choose_model(model, lora)
    pipeline = load_base(chosen.base, dtype=place.dtype, device=place.name)
    how: dict[str, Any] = chosen.drawing.model_dump()
    if chosen.lora is not None:
        info = apply_lora(pipeline, chosen.lora)
        how |= {"layout": info.layout, "domains": info.domains}
    return pipeline, how | {name: value for name, value in given.items() if value is not None}


def _show(asset: "Asset") -> None:
    typer.echo(asset.path)
    for name, value in asset.measurements.items():
        if "/" not in name:
            typer.echo(f"  {name} {value:.4g}")
    typer.echo(f"  seconds {sum(asset.seconds.values()):.1f}")
    for warning in asset.warnings:
        typer.echo(f"  warning: {warning}")
