"""The three deployments: two that hold models, and the ingress that hands them work."""

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from kiss3d_infer.serve.assets import AssetStore
from kiss3d_infer.serve.config import ServeConfig
from kiss3d_infer.serve.dispatch import Dispatcher
from kiss3d_infer.serve.ingress import create_app
from kiss3d_infer.serve.stages import StageResult, generate, make_mesh, run_stage
from kiss3d_infer.serve.store import Task, TaskStore

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle


def open_data(config: ServeConfig) -> tuple[TaskStore, AssetStore]:
    """The task table and the asset folders below the data folder.

    Raises:
        InputError: the folder is not writable, or holds another version's table.
    """
    return TaskStore(config.data / "tasks.sqlite3"), AssetStore(config.data / "assets")


class Generator:
    """Holds the Flux pipeline with its adapter, and turns prompts into bundles."""

    def __init__(self, config: ServeConfig) -> None:
        """Load the model once; this is what a replica's start takes."""
        from kiss3d_infer.flux.base import load_base
        from kiss3d_infer.flux.lora import apply_lora

        if config.generator is None:
            raise ValueError("no generator is configured")
        self._store, assets = open_data(config)
        generator, model = config.generator, config.generator.model()
        device = generator.device
        pipeline = load_base(model.base, dtype=generator.dtype or device.dtype, device=device.name)
        work = partial(generate, pipeline=pipeline, drawing=model.drawing, assets=assets)
        if model.lora:
            info = apply_lora(pipeline, model.lora, generator.lora_scale)
            work = partial(work, layout=info.layout, domains=info.domains)
        self._work = work

    async def run(self, task: Task) -> StageResult:
        """Work on a task in a thread, so that health checks are answered meanwhile."""
        return await asyncio.to_thread(run_stage, self._store, task, self._work)


class Reconstructor:
    """Turns bundles into textured meshes."""

    def __init__(self, config: ServeConfig) -> None:
        """Open the data folder, and see that the device can rasterize before any task needs it."""
        from kiss3d_infer.scene.raster import rasterizer_for

        self._store, assets = open_data(config)
        chosen = config.reconstructor
        device = chosen.device.name
        rasterizer_for(device)
        self._work = partial(make_mesh, defaults=chosen.settings, device=device, assets=assets)

    async def run(self, task: Task) -> StageResult:
        """Work on a task in a thread, so that health checks are answered meanwhile."""
        return await asyncio.to_thread(run_stage, self._store, task, self._work)


class Ingress:
    """Answers HTTP, owns the queue, and leads tasks through the other deployments."""

    def __init__(
        self,
        config: ServeConfig,
        reconstructor: "DeploymentHandle",
        generator: "DeploymentHandle | None" = None,
    ) -> None:
        """Open the data folder; the dispatcher starts with the application's lifespan."""
        self._config = config
        self._store, self._assets = open_data(config)
        handles = {"mesh": reconstructor} | ({"generate": generator} if generator else {})
        replicas = [config.reconstructor.replicas]
        if config.generator:
            replicas.append(config.generator.replicas)
        self._dispatcher = Dispatcher(
            self._store,
            self._assets,
            {stage: handle.run.remote for stage, handle in handles.items()},
            num_workers=sum(replicas),
            queue=config.queue,
        )

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Called by Ray Serve after the constructor, in the replica."""
        return create_app(self._config, self._store, self._assets, self._dispatcher)

    async def drain(self, seconds: float) -> None:
        """Start no more tasks; wait for the running ones, and put back those that take longer."""
        await self._dispatcher.stop(seconds)
