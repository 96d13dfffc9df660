"""Blender as a peer for `benchmarks.data.render_cpu`: Cycles on one thread.

Lit colours and normals leave the same shader, as emission and as a second output of the same pass:
no lamp has to be sampled, so that four samples per pixel suffice and are without noise.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.data.render_peers import (
    AMBIENT,
    FOV,
    LAMPS,
    SUPERSAMPLING,
    TILE,
    Floats,
    Model,
    Peer,
    Pixels,
    camera_poses,
    side_by_side,
    to_linear,
    unit,
)

_CODE = "code"
_AS_WRITTEN = (to_linear(np.arange(256) / 255) * 255).astype(np.float32)
"""Of a byte that Blender converted to sRGB when saving: the value before."""


class BlenderCycles(Peer):
    """Blender's path tracer, as the module `bpy`."""

    def __init__(self) -> None:
        import bpy

        bpy.ops.wm.read_factory_settings(use_empty=True)
        self._folder = tempfile.TemporaryDirectory()
        scene = bpy.context.scene
        _set_up(scene)
        _add_camera(bpy, scene)
        _add_outputs(bpy, scene, self._folder.name)

    def read(self, model: Model) -> list[Any]:
        """Import the OBJ in place of the model before, and give it shaders that glow."""
        import bpy
        from mathutils import Matrix

        _forget_all_but(bpy, bpy.context.scene.camera)
        # Axes as in the file: the object's matrix does the rest.
        bpy.ops.wm.obj_import(filepath=str(model.path), forward_axis="Y", up_axis="Z")
        objects = [thing for thing in bpy.data.objects if thing.type == "MESH"]
        for thing in objects:
            thing.matrix_world = Matrix(model.placed)
            if not thing.data.materials:
                thing.data.materials.append(bpy.data.materials.new("unpainted"))
        for material in bpy.data.materials:
            _make_glow(material)
        return objects

    def draw(self, objects: list[Any]) -> Pixels:
        """Render each view; Blender writes its passes to files."""
        import bpy
        from mathutils import Matrix

        rgb, codes = [], []
        for pose in camera_poses():
            bpy.context.scene.camera.matrix_world = Matrix(pose.tolist())
            bpy.ops.render.render()
            lit, code = self._tile("rgb"), _AS_WRITTEN[self._tile(_CODE)]
            alpha = lit[..., 3:] / np.float32(255)
            rgb.append(_on_white(lit[..., :3], alpha))
            codes.append(_on_white(code[..., :3], alpha))
        return side_by_side(rgb, codes)

    def _tile(self, name: str) -> Pixels:
        with Image.open(Path(self._folder.name) / f"view{name}.png") as picture:
            return np.asarray(picture)


def _set_up(scene: Any) -> None:
    scene.render.engine = "CYCLES"
    cycles, render = scene.cycles, scene.render
    cycles.device, cycles.samples = "CPU", SUPERSAMPLING**2
    cycles.use_adaptive_sampling = cycles.use_denoising = False
    cycles.max_bounces = 0
    cycles.pixel_filter_type = "BOX"
    render.threads_mode, render.threads = "FIXED", 1
    render.resolution_x = render.resolution_y = TILE
    render.film_transparent = True
    render.use_persistent_data = True
    scene.view_settings.view_transform = "Standard"
    aov = scene.view_layers[0].aovs.add()
    aov.name, aov.type = _CODE, "COLOR"


def _add_camera(bpy: Any, scene: Any) -> None:
    lens = bpy.data.cameras.new("camera")
    lens.angle = math.radians(FOV)
    scene.camera = bpy.data.objects.new("camera", lens)
    scene.collection.objects.link(scene.camera)


def _add_outputs(bpy: Any, scene: Any, folder: str) -> None:
    """Uncompressed PNGs of both outputs: without a window no other way leads to the pixels."""
    nodes = bpy.data.node_groups.new("outputs", "CompositorNodeTree")
    scene.compositing_node_group = nodes
    layers, file = (nodes.nodes.new(f"CompositorNode{kind}") for kind in ("RLayers", "OutputFile"))
    file.directory, file.file_name = folder, "view"
    file.format.media_type, file.format.file_format = "IMAGE", "PNG"
    file.format.color_mode, file.format.compression = "RGBA", 0
    for place, (name, output) in enumerate((("rgb", "Image"), (_CODE, _CODE))):
        file.file_output_items.new("RGBA", name)
        nodes.links.new(layers.outputs[output], file.inputs[place])


def _forget_all_but(bpy: Any, camera: Any) -> None:
    bpy.data.batch_remove([thing for thing in bpy.data.objects if thing is not camera])
    pictures = [image for image in bpy.data.images if image.source == "FILE"]
    for blocks in (bpy.data.meshes, bpy.data.materials, pictures):
        bpy.data.batch_remove(list(blocks))


def _make_glow(material: Any) -> None:
    """Replace a material's shader by one that sends what the lamps would have it send."""
    tree = material.node_tree
    colour = next((n.inputs["Base Color"] for n in tree.nodes if n.type == "BSDF_PRINCIPLED"), None)
    emission = tree.nodes.new("ShaderNodeEmission")
    output = next(n for n in tree.nodes if n.type == "OUTPUT_MATERIAL")
    tree.links.new(emission.outputs[0], output.inputs["Surface"])
    normal = _normal_in_camera(tree)
    tint = tree.nodes.new("ShaderNodeVectorMath")
    tint.operation = "SCALE"
    if colour is not None and colour.is_linked:
        tree.links.new(colour.links[0].from_socket, tint.inputs[0])
    else:
        plain = (0.8,) * 3 if colour is None else colour.default_value[:3]
        # Blender takes the file's sRGB for linear light, and does not draw what sends none at all.
        tint.inputs[0].default_value = np.maximum(to_linear(np.asarray(plain)), 1e-5)
    tree.links.new(_received(tree, normal), tint.inputs["Scale"])
    tree.links.new(tint.outputs[0], emission.inputs["Color"])
    code = tree.nodes.new("ShaderNodeVectorMath")
    code.operation = "MULTIPLY_ADD"
    tree.links.new(normal, code.inputs[0])
    code.inputs[1].default_value, code.inputs[2].default_value = (-0.5, 0.5, -0.5), (0.5,) * 3
    out = tree.nodes.new("ShaderNodeOutputAOV")
    out.aov_name = _CODE
    tree.links.new(code.outputs[0], out.inputs["Color"])


def _normal_in_camera(tree: Any) -> Any:
    """The socket of the normal in Cycles' camera axes, whose z points away from the viewer."""
    geometry = tree.nodes.new("ShaderNodeNewGeometry")
    turn = tree.nodes.new("ShaderNodeVectorTransform")
    turn.vector_type, turn.convert_from, turn.convert_to = "NORMAL", "WORLD", "CAMERA"
    tree.links.new(geometry.outputs["Normal"], turn.inputs[0])
    return turn.outputs[0]


def _received(tree: Any, normal: Any) -> Any:
    """The socket of the light on a surface with this normal."""
    total = None
    for strength, direction in LAMPS:
        x, y, z = strength * unit(direction)
        cosine = tree.nodes.new("ShaderNodeVectorMath")
        cosine.operation = "DOT_PRODUCT"
        cosine.inputs[1].default_value = (x, y, -z)
        tree.links.new(normal, cosine.inputs[0])
        lit = _math(tree, "MAXIMUM", cosine.outputs["Value"], 0.0)
        total = _math(tree, "ADD", lit, AMBIENT if total is None else total)
    return total


def _math(tree: Any, operation: str, first: Any, second: Any) -> Any:
    node = tree.nodes.new("ShaderNodeMath")
    node.operation = operation
    tree.links.new(first, node.inputs[0])
    if isinstance(second, float):
        node.inputs[1].default_value = second
    else:
        tree.links.new(second, node.inputs[1])
    return node.outputs[0]


def _on_white(colour: Floats, alpha: Floats) -> Pixels:
    return np.rint(colour * alpha + (1 - alpha) * 255).astype(np.uint8)
