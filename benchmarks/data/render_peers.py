"""Other renderers that draw the same bundles as ours, for `benchmarks.data.render_cpu`.

Each has `read(model)`, `draw(what was read)`, which returns an 8-bit picture, and
`write(picture, path)`. All see the model through the same cameras, take four samples per pixel and
light it by the same ambient light and two lamps, without shadows.
"""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kiss3d_infer.bundle.image import FAST_PNG

Floats = NDArray[Any]
Pixels = NDArray[np.uint8]

TILE, SUPERSAMPLING = 512, 2
AZIMUTHS, ELEVATION, DISTANCE, FOV = (0, 90, 180, 270), 5, 4.5, 30
AMBIENT, LAMPS = 0.46, ((0.415, (-0.5, 0.7, 0.6)), (0.165, (0.7, 0.1, 0.7)))
"""`kiss3d_infer.scene.lighting.STUDIO`, in camera axes."""


@dataclass(frozen=True)
class Model:
    """A model's files, unpacked, and where it stands before the cameras."""

    key: str
    path: Path
    placed: tuple[tuple[float, ...], ...]
    """4 x 4: from the file's axes and units to the framed object's."""
    item: Any
    """`MeshItem` of the furniture source."""


def camera_poses() -> list[Floats]:
    """Camera-to-world transforms [4, 4] of the four views."""
    poses = []
    for azimuth in AZIMUTHS:
        a, e = math.radians(azimuth), math.radians(ELEVATION)
        right = np.array([math.cos(a), 0, -math.sin(a)])
        back = np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
        pose[:3, 3] = DISTANCE * back
        poses.append(pose)
    return poses


def unit(vector: tuple[float, float, float]) -> Floats:
    """The same direction with length 1."""
    return np.asarray(vector) / np.linalg.norm(vector)


def to_linear(srgb: Floats) -> Floats:
    """sRGB in [0, 1] to linear light."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Floats) -> Floats:
    """Linear light in [0, 1] to sRGB."""
    bright = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, bright)


def side_by_side(rgb: list[Pixels], normals: list[Pixels]) -> Pixels:
    """Four RGB tiles above four normal tiles."""
    return np.concatenate([np.concatenate(rgb, 1), np.concatenate(normals, 1)])


class Peer:
    """What the peers share."""

    def write(self, picture: Pixels, path: Path) -> None:
        """Save as PNG, with the settings that ours is saved with."""
        Image.fromarray(picture).save(path, "PNG", **FAST_PNG)


def read_parts(model: Model) -> list[Any]:
    """The model's parts as placed trimesh meshes, one for each material."""
    import trimesh

    scene = trimesh.load_scene(model.path, process=False)
    scene.apply_transform(np.asarray(model.placed))
    return [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]


class TrimeshEmbree(Peer):
    """Rays of trimesh scenes through Embree; shading and textures in numpy."""

    def __init__(self) -> None:
        import embreex.rtcore_scene  # noqa: F401  (trimesh would fall back on slow rays)

        side = TILE * SUPERSAMPLING
        slope = ((np.arange(side) + 0.5) / side * 2 - 1) * math.tan(math.radians(FOV) / 2)
        x, y = np.meshgrid(slope, -slope)
        self._rays = np.stack([x, y, np.full_like(x, -1)], -1).astype(np.float32)

    def read(self, model: Model) -> list[Any]:
        """Parts."""
        return read_parts(model)

    def draw(self, parts: list[Any]) -> Pixels:
        """Cast rays within the object's bounding rectangle only."""
        import trimesh
        from trimesh.ray.ray_pyembree import RayMeshIntersector

        joined = trimesh.Trimesh(**_joined(parts), process=False)
        normals = np.concatenate([part.vertex_normals for part in parts]).astype(np.float32)
        owner = np.repeat(np.arange(len(parts)), [len(part.faces) for part in parts])
        first = np.cumsum([0] + [len(part.faces) for part in parts])
        intersector = RayMeshIntersector(joined)
        rgb, codes = [], []
        for pose in camera_poses():
            rectangle = self._rectangle(joined.vertices, pose)
            rays = self._rays[rectangle]
            shape, rotation = rays.shape[:2], pose[:3, :3].astype(np.float32)
            directions = rays.reshape(-1, 3) @ rotation.T
            origins = np.broadcast_to(pose[:3, 3].astype(np.float32), directions.shape)
            hit = intersector._scene.run(np.ascontiguousarray(origins), directions, output=True)
            seen = np.flatnonzero(hit["primID"] >= 0)
            face, u, v = hit["primID"][seen], hit["u"][seen, None], hit["v"][seen, None]
            weights = np.stack([1 - u - v, u, v])
            corner = normals[joined.faces[face]]
            normal = sum(weights[i] * corner[:, i] for i in range(3))
            normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
            normal *= -np.sign((normal * directions[seen]).sum(1, keepdims=True))
            light = self._albedo(parts, owner, first, face, weights) * _received(normal @ rotation)
            tiles = self._pixels(shape, seen, light, normal @ rotation)
            for tile, row in zip(tiles, (rgb, codes), strict=True):
                row.append(_in_white(tile, rectangle))
        return side_by_side(rgb, codes)

    def _rectangle(self, vertices: Floats, pose: Floats) -> tuple[slice, slice]:
        """Of samples that may see the object, in whole pixels."""
        local = (vertices - pose[:3, 3]) @ pose[:3, :3]
        place = local[:, :2] / -local[:, 2:] / math.tan(math.radians(FOV) / 2) * (1, -1)
        pixels = (place + 1) / 2 * TILE
        low = np.clip(np.floor(pixels.min(0)), 0, TILE - 1).astype(int) * SUPERSAMPLING
        high = np.clip(np.ceil(pixels.max(0)), 1, TILE).astype(int) * SUPERSAMPLING
        return slice(low[1], high[1]), slice(low[0], high[0])

    def _albedo(
        self, parts: list[Any], owner: Floats, first: Floats, face: Floats, weights: Floats
    ) -> Floats:
        """Linear colour [P, 3] of points on the faces [P]."""
        from trimesh.visual.color import uv_to_interpolated_color

        colors = np.empty((len(face), 3), np.float32)
        of_point = owner[face]
        for i in np.unique(of_point):
            here, visual = np.flatnonzero(of_point == i), parts[i].visual
            material = getattr(visual, "material", None)
            image = getattr(material, "image", None)
            if image is None or visual.uv is None:
                plain = visual.main_color if material is None else material.main_color
                colors[here] = to_linear(plain[:3] / 255)
                continue
            corner = visual.uv[parts[i].faces[face[here] - first[i]]]
            uv = sum(weights[k][here] * corner[:, k] for k in range(3))
            colors[here] = to_linear(uv_to_interpolated_color(uv, image)[:, :3] / 255)
        return colors

    def _pixels(
        self, shape: tuple[int, int], seen: Floats, light: Floats, normal: Floats
    ) -> tuple[Pixels, Pixels]:
        """RGB and normal colours [H, W, 3] of samples on white."""
        samples = np.zeros((shape[0] * shape[1], 7), np.float32)
        samples[seen, :3], samples[seen, 3:6], samples[seen, 6] = light, normal, 1
        height, width = shape[0] // SUPERSAMPLING, shape[1] // SUPERSAMPLING
        blocks = samples.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 7)
        mean = (
            blocks[:, 0, :, 0] + blocks[:, 0, :, 1] + blocks[:, 1, :, 0] + blocks[:, 1, :, 1]
        ) / 4
        alpha = mean[..., 6:]
        rgb = to_srgb(np.clip(mean[..., :3] / np.maximum(alpha, 1e-9), 0, 1))
        code = mean[..., 3:6] / np.maximum(
            np.linalg.norm(mean[..., 3:6], axis=-1, keepdims=True), 1e-9
        )
        code = (code * (-1, 1, 1) + 1) / 2
        pixels = [
            np.rint((color * alpha + 1 - alpha) * 255).astype(np.uint8) for color in (rgb, code)
        ]
        return pixels[0], pixels[1]


def _joined(parts: list[Any]) -> dict[str, Floats]:
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts])
    faces = [part.faces + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return {
        "vertices": np.concatenate([part.vertices for part in parts]),
        "faces": np.concatenate(faces),
    }


def _received(normal: Floats) -> Floats:
    light = np.full((len(normal), 1), AMBIENT, np.float32)
    for strength, direction in LAMPS:
        light += strength * np.maximum(normal @ unit(direction), 0)[:, None].astype(np.float32)
    return light


def _in_white(tile: Pixels, rectangle: tuple[slice, slice]) -> Pixels:
    whole = np.full((TILE, TILE, 3), 255, np.uint8)
    rows, columns = (slice(s.start // SUPERSAMPLING, s.stop // SUPERSAMPLING) for s in rectangle)
    whole[rows, columns] = tile
    return whole


_NORMAL_VERTEX = """#version 330 core
layout(location = 0) in vec3 position;
#ifdef NORMAL_LOC
layout(location = NORMAL_LOC) in vec3 normal;
#endif
layout(location = INST_M_LOC) in mat4 inst_m;
uniform mat4 M, V, P;
out vec3 turned;
void main() {
    gl_Position = P * V * M * inst_m * vec4(position, 1);
    turned = mat3(V * M * inst_m) * normal;
}
"""
_NORMAL_FRAGMENT = """#version 330 core
in vec3 turned;
out vec4 color;
void main() {
    vec3 n = normalize(turned) * (gl_FrontFacing ? 1.0 : -1.0);
    color = vec4((vec3(-n.x, n.y, n.z) + 1) / 2, 1);
}
"""


class PyrenderMesa(Peer):
    """pyrender on Mesa's software rasterizer: four samples per pixel, which are shaded once.

    Through EGL, because pyrender takes one sample only through OSMesa.
    """

    def __init__(self) -> None:
        os.environ |= {"PYOPENGL_PLATFORM": "egl", "LIBGL_ALWAYS_SOFTWARE": "1"}
        os.environ["LP_NUM_THREADS"] = "0"  # no threads beside this one
        vars(np).setdefault("infty", np.inf)  # pyrender was last released before numpy 2
        import pyrender
        from pyrender.shader_program import ShaderProgramCache

        self._shaders = tempfile.TemporaryDirectory()
        folder = Path(self._shaders.name)
        (folder / "mesh.vert").write_text(_NORMAL_VERTEX)
        (folder / "mesh.frag").write_text(_NORMAL_FRAGMENT)
        self._offscreen = pyrender.OffscreenRenderer(TILE, TILE)
        own = self._offscreen._renderer._program_cache
        self._programs = (own, ShaderProgramCache(shader_dir=str(folder)))

    def read(self, model: Model) -> list[Any]:
        """pyrender's meshes, matt and seen from both sides."""
        import pyrender

        meshes = [pyrender.Mesh.from_trimesh(part) for part in read_parts(model)]
        for mesh in meshes:
            for primitive in mesh.primitives:
                material = primitive.material
                material.doubleSided, material.alphaMode = True, "OPAQUE"
                material.metallicFactor, material.roughnessFactor = 0.0, 1.0
                textured = material.baseColorTexture is not None
                factor = (
                    np.array([1, 1, 1, 1.0]) if textured else np.array(material.baseColorFactor)
                )
                factor[:3] = to_linear(factor[:3])
                material.baseColorFactor = factor
        return meshes

    def draw(self, meshes: list[Any]) -> Pixels:
        """Two passes for each view: lit colours, and normals by a shader of our own."""
        import pyrender

        scene = pyrender.Scene(bg_color=(1.0, 1, 1, 0), ambient_light=(AMBIENT,) * 3)
        for mesh in meshes:
            scene.add(mesh)
        rig = _rig(scene)
        rgb, codes = [], []
        for pose in camera_poses():
            scene.set_pose(rig, pose)
            for row, programs in zip((rgb, codes), self._programs, strict=True):
                self._offscreen._renderer._program_cache = programs
                row.append(self._offscreen.render(scene)[0])
        return side_by_side(rgb, codes)


def _rig(scene: Any) -> Any:
    """The camera, and lamps that move with it."""
    import pyrender

    camera = pyrender.PerspectiveCamera(math.radians(FOV), znear=0.1, zfar=20.0, aspectRatio=1.0)
    rig = pyrender.Node(camera=camera, matrix=np.eye(4))
    scene.add_node(rig)
    for strength, direction in LAMPS:
        back = unit(direction)
        right = unit(tuple(np.cross((0, 1, 0), back)))
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
        light = pyrender.DirectionalLight(intensity=strength * math.pi)
        scene.add_node(pyrender.Node(light=light, matrix=pose), parent_node=rig)
    return rig
