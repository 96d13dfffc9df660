"""Gradient descent on the vertices of a mesh whose connectivity changes as it goes.

Adam with one second moment per vertex, steps in units of the local target edge length, and a
controller that shortens the target while vertices move slowly (Palfinger, "Continuous remeshing
for inverse rendering", 2022). One change: the denominator also holds a share of the mesh's mean
second moment, so that a vertex that no view sees, whose tiny gradient Adam would blow up to a full
step, stays where it is.
"""

import math
from dataclasses import dataclass

import numpy as np

from kiss3d_infer.reconstruct.remesh import remesh
from kiss3d_infer.reconstruct.topology import Float32, Int32, compiled, neighbour_means

# Columns of a vertex's state row; the remesher averages all of them.
_POSITION, _FIRST_MOMENTUM = slice(0, 3), 3
_SECOND_MOMENT, _SPEED, _TARGET_LENGTH = 6, 7, 8
_NUM_COLUMNS = 9


@dataclass(frozen=True)
class DescentSettings:
    """How a mesh descends; the defaults are continuous remeshing's except where noted."""

    edge_lengths: tuple[float, float]
    """(first, least) target edge length, world units; the controller moves between the two."""
    learning_rate: float = 0.3
    """Step in target edge lengths at unit normalised gradient."""
    decay: float = 1.0
    """Factor on the learning rate per step."""
    ramp: float = 1.0
    """Steps over which the learning rate rises at the start, in units of 1 / (1 - beta)."""
    beta: float = 0.8
    """Decay of both moments; short, for the landscape changes with every remeshing."""
    length_gain: float = 0.05
    """How strongly the target length follows the mean speed."""
    reference_speed: float = 0.3
    """The mean speed at which the target length stays."""
    smoothing: float = 0.01
    """Weight of the pull toward the neighbours' mean, scaled by each vertex's speed."""
    stillness: float = 0.3
    """Share of the mean gradient norm added to each vertex's own (ours; 0 is the original)."""
    gradient_limit: float = 10.0
    """A gradient component is clipped to this multiple of its momentum."""
    steps_per_remesh: int = 2
    """Gradient steps between two passes of the remesher (1 in the original)."""


class MeshDescent:
    """A mesh under optimisation: give it gradients, let it remesh.

    Args:
        vertices: [N, 3] start positions.
        faces: [F, 3] a closed manifold.
        settings: see `DescentSettings`.
    """

    def __init__(self, vertices: Float32, faces: Int32, settings: DescentSettings) -> None:
        self._state = np.zeros((len(vertices), _NUM_COLUMNS), np.float32)
        self._state[:, _POSITION] = vertices
        self._state[:, _TARGET_LENGTH] = settings.edge_lengths[0]
        self.faces = np.ascontiguousarray(faces, np.int32)
        self._settings = settings
        self._num_steps = 0

    @property
    def vertices(self) -> Float32:
        """A copy of the positions, [N, 3]."""
        return np.ascontiguousarray(self._state[:, _POSITION])

    def step(self, gradient: Float32) -> None:
        """Move every vertex against its gradient [N, 3] and update the target edge length."""
        settings = self._settings
        self._num_steps += 1
        # Bias-corrected moments are stored, so that remeshing may average old and new vertices.
        before = 1 - settings.beta ** (self._num_steps - 1)
        after = 1 - settings.beta**self._num_steps
        limit = settings.gradient_limit if self._num_steps > 1 else math.inf
        _update_moments(
            self._state,
            gradient,
            neighbour_means(self.vertices, self.faces),
            settings.smoothing,
            limit,
            settings.beta * before / after,
            (1 - settings.beta) / after,
        )
        warm = min(1.0, self._num_steps * (1 - settings.beta) / settings.ramp)
        rate = settings.learning_rate * settings.decay**self._num_steps * warm
        speed = _move(self._state, rate, settings.stillness)
        factor = 1 + settings.length_gain * (speed - settings.reference_speed)
        first, least = settings.edge_lengths
        lengths = self._state[:, _TARGET_LENGTH] * np.float32(factor)
        self._state[:, _TARGET_LENGTH] = np.clip(lengths, least, first)

    def remesh(self) -> None:
        """Bring the edges nearer to the target length."""
        self._state, self.faces = remesh(self._state, self.faces, length_column=_TARGET_LENGTH)


@compiled
def _update_moments(
    state: Float32,
    gradient: Float32,
    means: Float32,
    smoothing: float,
    limit: float,
    old: float,
    new: float,
) -> None:
    """Blend a gradient [N, 3] and the pull toward the neighbours' means [N, 3] into the moments."""
    for vertex in range(len(state)):
        squared = 0.0
        for k in range(3):
            momentum = state[vertex, _FIRST_MOMENTUM + k]
            pull = smoothing * state[vertex, _SPEED] * (state[vertex, k] - means[vertex, k])
            most = limit * abs(momentum) if limit < math.inf else math.inf
            clipped = min(max(gradient[vertex, k] + pull, -most), most)
            squared += clipped * clipped
            state[vertex, _FIRST_MOMENTUM + k] = old * momentum + new * clipped
        state[vertex, _SECOND_MOMENT] = old * state[vertex, _SECOND_MOMENT] + new * squared


@compiled
def _move(state: Float32, rate: float, stillness: float) -> float:
    """Move the vertices by their moments, note their speeds, and return the mean speed."""
    total = 0.0
    for vertex in range(len(state)):
        total += state[vertex, _SECOND_MOMENT]
    floor = stillness * math.sqrt(total / len(state)) + 1e-8
    speeds = 0.0
    for vertex in range(len(state)):
        scale = 1 / (math.sqrt(state[vertex, _SECOND_MOMENT]) + floor)
        squared = 0.0
        for k in range(3):
            velocity = state[vertex, _FIRST_MOMENTUM + k] * scale
            squared += velocity * velocity
            state[vertex, k] -= rate * state[vertex, _TARGET_LENGTH] * velocity
        state[vertex, _SPEED] = math.sqrt(squared)
        speeds += state[vertex, _SPEED]
    return speeds / len(state)
