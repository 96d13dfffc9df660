"""The command `kiss3d`. Bodies are thin, and import what they need when they run."""

import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from kiss3d_infer import cli as infer
from kiss3d_infer.errors import InputError
from kiss3d_infer.mlflow_server import DEFAULT_URI

app = typer.Typer(
    help="Draw 3D bundle images with Flux and reconstruct them into textured meshes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="From meshes to shards of captioned bundles.", no_args_is_help=True)
fetch = typer.Typer(help="Fetch public data sets.", no_args_is_help=True)
convert = typer.Typer(
    help="Make weights that load safely, are small, or suit other programs.", no_args_is_help=True
)
train = typer.Typer(help="Train a bundle LoRA, or a small Flux, with Ray.", no_args_is_help=True)
app.add_typer(data, name="data")
data.add_typer(fetch, name="fetch")
app.add_typer(convert, name="convert")
app.add_typer(train, name="train")

_verbose = False

Recipe = Annotated[Path, typer.Argument(help="Training recipe, e.g. configs/train/demo-mini.yaml.")]
Run = Annotated[str, typer.Argument(help="MLflow run id, the beginning of one, or a run.dir.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a value: --set optimizer.lr=1e-4")
]
CaptionerName = Literal["metadata", "api", "local"]
TrackingUri = Annotated[
    str, typer.Option("--tracking-uri", help="MLflow server or database; none: no MLflow run.")
]
Shards = Annotated[str, typer.Argument(help="Folder or URL of shards.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]


def main() -> None:
    """Run the command: exit 0 ok, 1 failed, 2 bad input or usage; errors are one plain sentence."""
    try:
        sys.exit(app(standalone_mode=False))  # or else Typer draws a box around usage errors
    except InputError as error:
        _fail(str(error), 2)
    except typer.TyperException as error:
        problem = " ".join(error.format_message().split())
        if not problem:  # a group without a command, whose help has been printed
            sys.exit(error.exit_code)
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        _fail(f"{problem.removesuffix('.')}{hint}", error.exit_code)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}".splitlines()[0], 1)


def _fail(sentence: str, code: int) -> None:
    if _verbose:
        traceback.print_exc()
    hint = "" if _verbose or code == 2 else " (kiss3d -v ... shows the traceback)"
    print(f"kiss3d: {sentence}{hint}", file=sys.stderr)
    sys.exit(code)


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks.")] = False,
) -> None:
    global _verbose
    _verbose = verbose


@app.command()
def demo(out: Out = Path("demo")) -> None:
    """Everything end to end on this machine: data, training, generation, reconstruction."""
    from kiss3d_train.demo import run_demo

    run_demo(out)


for command in (infer.doctor, infer.generate, infer.reconstruct, infer.text_to_3d, infer.serve):
    app.command()(command)
convert.command("lrm")(infer.convert_lrm)
convert.command("pack-base")(infer.pack_base)
convert.command("random-base")(infer.create_random_base)
convert.command("lora")(infer.convert_lora)


@fetch.command()
def furniture(out: Out = Path("data/furniture")) -> None:
    """Fetch Sweet Home 3D's 820 furniture models (CC0, CC-BY) from Debian's archive."""
    from kiss3d_train.data.furniture import fetch_furniture

    for library in fetch_furniture(out):
        typer.echo(library)


@data.command()
def render(
    source: Annotated[
        str,
        typer.Option(
            help="A folder, a .sh3f file, s3://..., gs://..., objaverse:UIDS.txt, "
            "objaverse-xl:FILE, wds:FOLDER, or toybox:N."
        ),
    ],
    out: Out,
    config: Annotated[
        Path | None,
        typer.Option(help="Recipe, as configs/data/render.yaml; options overrule it."),
    ] = None,
    overrides: Overrides = None,
    tile: Annotated[
        int | None,
        typer.Option(min=16, help="Side of a tile in pixels, a multiple of 16; default: 512."),
    ] = None,
    layout: Annotated[
        Path | None,
        typer.Option(help="Views other than the published ones, e.g. configs/layouts/*.yaml."),
    ] = None,
    lighting: Annotated[
        str | None, typer.Option(help="studio (default), albedo, random or environment.")
    ] = None,
    environments: Annotated[
        Path | None, typer.Option(help="Folder of equirectangular .hdr or .png maps.")
    ] = None,
    extras: Annotated[
        str | None, typer.Option(help="Also write some of: normals,depth,masks,random_views.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu (default) or cuda.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Meshes at a time; default: one per core.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that a mesh may take; default: 300.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="GiB that a mesh may take; default: 8.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N meshes.")] = None,
    orientation: Annotated[
        Path | None, typer.Option(help="JSON or CSV: key or uid -> azimuth of the front, degrees.")
    ] = None,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Render meshes into bundle images; run it again to resume."""
    from kiss3d_infer.config import load_config
    from kiss3d_train.data.job_records import record_render
    from kiss3d_train.data.job_run import job_run
    from kiss3d_train.data.render import render_with
    from kiss3d_train.data.rendering.settings import RenderSettings, option_overrides

    given = option_overrides(
        tile=tile,
        layout=layout,
        lighting=lighting,
        environments=environments,
        extras=extras,
        device=device,
        workers=workers,
        timeout=timeout,
        memory=memory,
    )
    resolved = load_config(RenderSettings, config, [*(overrides or ()), *given])
    params = {"source": source, "out": out, "limit": limit, "orientation": orientation}
    with job_run("render", tracking_uri, params | resolved.values()) as run:
        summary = render_with(resolved.config, source, out, limit, orientation)
        record_render(run, summary, source)
    typer.echo(summary)


@data.command()
def curate(
    rendered: Annotated[Path, typer.Argument(help="Folder left by 'data render'.")],
    config: Annotated[
        Path | None,
        typer.Option(help="Filters and subsets; default as configs/data/curation.yaml."),
    ] = None,
    overrides: Overrides = None,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Decide which rendered bundles are fit for training, and say why the others are not."""
    from kiss3d_infer.config import load_config
    from kiss3d_train.data.curation import CurationConfig
    from kiss3d_train.data.curation import curate as curate_folder
    from kiss3d_train.data.job_records import record_curation
    from kiss3d_train.data.job_run import job_run

    resolved = load_config(CurationConfig, config, overrides or ())
    with job_run("curate", tracking_uri, resolved.values(), made_of=rendered) as run:
        curation = curate_folder(rendered, resolved.config)
        record_curation(run, curation, rendered)
    typer.echo(curation)


@data.command()
def caption(
    rendered: Annotated[Path, typer.Argument(help="Folder left by 'data render'.")],
    captioner: Annotated[CaptionerName, typer.Option("--with", help="Who writes.")],
    config: Annotated[
        Path | None, typer.Option(help="Settings of the captioner, a YAML file.")
    ] = None,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace exact captions that came with meshes, too.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Write captions: from names, colours and shape, or by a vision model; run again to resume."""
    from kiss3d_train.data.captions import caption_samples, open_captioner
    from kiss3d_train.data.job_records import record_captions
    from kiss3d_train.data.job_run import job_run

    writer = open_captioner(captioner, rendered, config, overrides or ())
    params = {"overwrite": overwrite, "limit": limit, **writer.params}
    with job_run("caption", tracking_uri, params, made_of=rendered) as run:
        summary = caption_samples(rendered, writer, overwrite=overwrite, limit=limit)
        record_captions(run, summary)
        run.status = "FINISHED" if summary.is_complete else "KILLED"
    typer.echo(summary)
    if not summary.is_complete:
        sys.exit("kiss3d: some samples have no caption yet; the same command goes on")


@data.command()
def shard(
    rendered: Annotated[Path, typer.Argument(help="Folder left by 'data render'.")],
    out: Annotated[str, typer.Option("--out", help="Folder or URL to write to.")],
    append: Annotated[
        bool, typer.Option("--append", help="Add new samples to the data set that is there.")
    ] = False,
    subset: Annotated[
        str | None, typer.Option(help="Only a subset that 'data curate' names, e.g. 50k.")
    ] = None,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Pack rendered bundles, if curated the accepted ones, into tars with an index."""
    from kiss3d_train.data.job_records import record_shards
    from kiss3d_train.data.job_run import job_run
    from kiss3d_train.data.shards import Appended, ShardIndex, append_shards, write_shards
    from kiss3d_train.data.storage import parse_place

    place = parse_place(out)
    params = {"rendered": rendered, "out": out, "append": append, "subset": subset}
    write = append_shards if append else write_shards
    with job_run("shard", tracking_uri, params, made_of=rendered) as run:
        made: ShardIndex | Appended = write(rendered, place, subset=subset)
        record_shards(run, made if isinstance(made, ShardIndex) else made.index, rendered, place)
    typer.echo(made)


@data.command()
def encode(
    shards: Shards,
    base: infer.Base,
    out: Annotated[
        str | None, typer.Option("--out", help="Default: SHARDS.latents, where training looks.")
    ] = None,
    domains: Annotated[
        Literal["bundle", "switch"], typer.Option(help="data.domains of the recipe.")
    ] = "bundle",
    device: infer.Device = "auto",
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Cache VAE latents and text embeddings of a base model; training does it where it is missing.

    The text encoders run in bfloat16 on CUDA and in float32 on the CPU: a recipe with another
    base.dtype encodes again.
    """
    from kiss3d_infer.devices import pick_device
    from kiss3d_train.config import latents_beside
    from kiss3d_train.data.encode import encode_shards
    from kiss3d_train.data.job_records import record_encoding
    from kiss3d_train.data.job_run import job_run
    from kiss3d_train.data.storage import parse_place

    on, place = pick_device(device), parse_place(shards)
    params = {"base": base, "domains": domains, "device": on.name, "dtype": on.dtype}
    with job_run("encode", tracking_uri, params, made_of=place) as run:
        folder = encode_shards(
            place,
            base,
            parse_place(out) if out else latents_beside(place),
            dtype=on.dtype,
            use_gpu=on.name != "cpu",
            domains=domains,
        )
        record_encoding(run, place)
    typer.echo(folder)


@data.command()
def inspect(
    folder: Annotated[
        str, typer.Argument(help="Folder or URL of shards, or folder of rendered bundles.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="A page to write, .html, or a contact sheet of shards, .png."),
    ],
) -> None:
    """Show a data set: a page of counts, histograms and pictures, or a contact sheet."""
    from kiss3d_train.data.storage import parse_place

    if out.suffix.lower() == ".png":
        from kiss3d_train.data.shards import inspect as inspect_shards

        typer.echo(inspect_shards(parse_place(folder), out))
    else:
        from kiss3d_train.data.report import write_page

        typer.echo(write_page(parse_place(folder), out))


@data.command()
def verify(folder: Shards) -> None:
    """Check every checksum and image of a data set."""
    from kiss3d_train.data.shards import verify as verify_shards

    typer.echo(verify_shards(folder))


@data.command()
def repair(folder: Shards) -> None:
    """Drop the samples of a data set that are damaged or missing, and say which and why."""
    from kiss3d_train.data.shards import repair as repair_shards

    typer.echo(repair_shards(folder))


@train.command()
def validate(config: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe and report every mistake at once."""
    from kiss3d_infer.config import load_config
    from kiss3d_train.config import TrainConfig

    load_config(TrainConfig, config, overrides or ())
    typer.echo(f"{config} is valid")


@train.command()
def plan(config: Recipe, overrides: Overrides = None) -> None:
    """Print the resolved recipe, what it takes, and what is wrong with it; take no device."""
    from kiss3d_infer.config import load_config
    from kiss3d_train.config import TrainConfig
    from kiss3d_train.figures import figures_of, show_plan
    from kiss3d_train.plan import make_plan
    from kiss3d_train.traps import traps
    from kiss3d_train.whole.plan import plan_whole, whole_figures
    from kiss3d_train.whole.traps import whole_traps

    resolved = load_config(TrainConfig, config, overrides or ())
    if resolved.config.full is not None:
        whole = plan_whole(resolved.config)
        show_plan(resolved, whole_figures(whole))
        found = whole_traps(whole)
    else:
        made = make_plan(resolved.config)
        show_plan(resolved, figures_of(made))
        found = traps(made)
    for sentence in found:
        typer.echo(f"  warning: {sentence}")


@train.command()
def run(config: Recipe, overrides: Overrides = None) -> None:
    """Train; a run that was stopped exits with 1 and goes on with --set run.resume=auto."""
    from kiss3d_infer.config import load_config
    from kiss3d_train.config import TrainConfig
    from kiss3d_train.run import run_training

    summary = run_training(load_config(TrainConfig, config, overrides or ()))
    typer.echo(summary)
    if summary.status == "stopped":
        sys.exit("kiss3d: stopped; the same command with --set run.resume=auto goes on")


@train.command()
def compare(
    run_a: Run,
    run_b: Run,
    tracking_uri: Annotated[
        str, typer.Option("--tracking-uri", help="MLflow server or database.")
    ] = DEFAULT_URI,
    out: Annotated[
        Path | None, typer.Option("--out", help="Contact sheet of what both runs drew, .png.")
    ] = None,
) -> None:
    """Show how two runs differ: recipes, data and base, metrics at equal steps."""
    from kiss3d_train.compare import compare_runs

    typer.echo(compare_runs(run_a, run_b, tracking_uri, out))
