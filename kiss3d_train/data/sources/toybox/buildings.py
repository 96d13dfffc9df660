"""Houses, towers and mills; the door faces +z."""

from __future__ import annotations

import math

from kiss3d_train.data.sources.toybox.build import Draw, Toy, plural, with_article
from kiss3d_train.data.sources.toybox.paint import (
    BRICK,
    GLASS,
    GOLDEN,
    STONE,
    STRAW,
    Paint,
    plain,
    striped,
    tiles,
    wooden,
)
from kiss3d_train.data.sources.toybox.solids import (
    Solid,
    ball,
    box,
    cylinder,
    dome,
    lathe,
    limb,
    slab,
)

CATEGORY = "building"
ROOFS = ("red", "brown", "grey", "blue", "green", "teal", "purple")


def gable(width: float, height: float, depth: float, eaves: float = 0.12) -> Solid:
    """A gabled roof whose ridge runs along x."""
    half = depth / 2 + eaves
    return slab([(-half, 0), (half, 0), (0, height)], width + 2 * eaves).turned("y", 90)


def window(width: float, height: float) -> list[tuple[Paint, Solid]]:
    """A framed window facing +z, its foot at the origin."""
    frame = box(width + 0.08, height + 0.08, 0.06).moved(y=-0.04)
    bars = [box(0.025, height, 0.09), box(width, 0.025, 0.09).moved(y=height / 2)]
    return [
        (plain("white"), frame),
        (GLASS, box(width, height, 0.08)),
        *((plain("white"), bar) for bar in bars),
    ]


def place(
    toy: Toy, pieces: list[tuple[Paint, Solid]], x: float, y: float, z: float, turn: float
) -> None:
    """Add painted solids turned about y, then moved."""
    for paint, solid in pieces:
        toy.add(paint, solid.turned("y", turn).moved(x, y, z))


def house(draw: Draw) -> Toy:
    """A house with a gabled roof, a door, windows and perhaps a chimney."""
    color, roof_word = draw.color("green"), draw.pick(ROOFS)
    walls = draw.pick((plain(color), BRICK, plain("beige"), wooden(0)))
    toy = Toy("house", CATEGORY, walls.word)
    storeys = draw.pick((1, 1, 2))
    width, depth, height = draw.between(2.0, 2.8), draw.between(1.7, 2.1), 1.15 * storeys
    pitch = draw.between(0.8, 1.2)
    toy.add(walls, box(width, height, depth))
    toy.add(
        walls,
        slab([(-depth / 2, 0), (depth / 2, 0), (0, pitch * 0.92)], width)
        .turned("y", 90)
        .moved(y=height),
    )
    half, run = depth / 2 + 0.18, math.hypot(depth / 2, pitch)
    outer = [(-half, -0.2 * pitch), (half, -0.2 * pitch), (0, pitch)]
    inner = [(-half, -0.32 * pitch), (0, pitch - 0.12 * pitch), (half, -0.32 * pitch)]
    cover = [outer[0], inner[0], inner[1], inner[2], outer[1], outer[2]]
    toy.add(
        tiles(roof_word, 0.6), slab(cover, width + 0.3).turned("y", 90).moved(y=height + 0.04 * run)
    )
    door = draw.color(roof_word, among=("red", "blue", "green", "brown", "white"))
    toy.add(plain("white"), box(0.56, 0.88, 0.08).moved(z=depth / 2))
    toy.add(plain(door), box(0.46, 0.82, 0.12).moved(z=depth / 2))
    toy.add(GOLDEN, ball(0.035, 8).moved(0.16, 0.4, depth / 2 + 0.08))
    toy.add(STONE, box(0.8, 0.08, 0.36).moved(z=depth / 2 + 0.12))
    pane = window(0.4, 0.45)
    for storey in range(storeys):
        y = 0.4 + 1.1 * storey
        spots = (-0.33, 0.33) if storey == 0 else (-0.33, 0.0, 0.33)
        for x in spots:
            place(toy, pane, x * width, y, depth / 2, 0)
            place(toy, pane, x * width, y, -depth / 2, 180)
        for side in (-1, 1):
            for z in (-0.24, 0.24):
                place(toy, pane, side * width / 2, y, z * depth, 90)
    toy.detail(f"{with_article(roof_word)} roof")
    toy.detail(f"{with_article(door)} door")
    if draw.chance(0.6):
        toy.add(BRICK, box(0.3, pitch + 0.2, 0.3).moved(width * 0.28, height + 0.1, -depth * 0.18))
        toy.detail("a brick chimney")
    return toy


def castle(draw: Draw) -> Toy:
    """A square castle with four round corner towers."""
    roof = draw.color("green")
    toy = Toy("castle", CATEGORY, "stone")
    side, wall, tower = draw.between(1.6, 2.0), draw.between(0.8, 1.0), draw.between(1.5, 1.9)
    half, radius = side / 2, draw.between(0.3, 0.36)
    toy.add(STONE, box(side, wall, side))
    for k in range(5):
        offset = (k - 2) * side / 5
        tooth = box(side / 10, 0.16, 0.14)
        for turn in (0, 90, 180, 270):
            toy.add(STONE, tooth.moved(offset, wall - 0.01, half - 0.07).turned("y", turn))
    for x in (-half, half):
        for z in (-half, half):
            toy.add(
                STONE,
                lathe(
                    [
                        (radius, 0),
                        (radius, tower),
                        (radius * 1.15, tower + 0.08),
                        (radius * 1.15, tower + 0.2),
                    ]
                ).moved(x, 0, z),
            )
            toy.add(tiles(roof, 0.5), cylinder(radius * 1.25, 0.75, 0).moved(x, tower + 0.2, z))
            toy.add(GLASS, box(0.1, 0.3, 2 * radius + 0.03).moved(x, tower * 0.68, z))
    keep = draw.chance(0.6)
    if keep:
        toy.add(STONE, box(side * 0.45, tower + 0.3, side * 0.45))
        toy.add(tiles(roof, 0.5), box(side * 0.52, 0.6, side * 0.52, 0.02).moved(y=tower + 0.3))
        toy.add(GLASS, box(0.12, 0.3, side * 0.46).moved(y=tower - 0.1))
    toy.add(
        wooden(1),
        box(0.5, 0.5, 0.08).moved(z=half),
        cylinder(0.25, 0.08).turned("x", 90).moved(y=0.5, z=half - 0.04),
    )
    flag = draw.color(roof)
    top = tower + (0.9 if keep else 0.95)
    spot = (0.0, 0.0) if keep else (half, half)
    toy.add(wooden(2), limb((spot[0], top - 0.1, spot[1]), (spot[0], top + 0.45, spot[1]), 0.025))
    toy.add(
        plain(flag), slab([(0, 0), (0.36, 0.1), (0, 0.22)], 0.03).moved(spot[0], top + 0.2, spot[1])
    )
    toy.detail(f"four towers with {roof} roofs")
    toy.detail(f"{with_article(flag)} flag")
    return toy


def windmill(draw: Draw) -> Toy:
    """A windmill with four sails."""
    walls = draw.pick((plain("white"), BRICK, STONE, wooden(0), plain(draw.color())))
    cap_word = draw.pick(ROOFS)
    toy = Toy("windmill", CATEGORY, walls.word)
    height, low = draw.between(1.8, 2.3), draw.between(0.65, 0.8)
    top = low * 0.66
    toy.add(walls, cylinder(low, height, top))
    toy.add(
        plain(cap_word),
        lathe([(top * 1.12, 0), (top * 1.12, 0.1), (top * 0.8, 0.45), (0.0, 0.7)]).moved(y=height),
    )
    toy.add(wooden(2), box(0.4, 0.7, 0.1).moved(z=low - 0.05))
    pane = window(0.2, 0.28)
    place(toy, pane, 0, height * 0.58, low - (low - top) * 0.6, 0)
    for turn in (90, 180, 270):
        spot = low - (low - top) * 0.5
        place(
            toy,
            pane,
            math.sin(math.radians(turn)) * spot,
            height * 0.45,
            math.cos(math.radians(turn)) * spot,
            turn,
        )
    hub, z = height + 0.16, top + 0.32
    toy.add(wooden(2), limb((0, hub, 0), (0, hub, z + 0.06), 0.07))
    sail_word = draw.color(cap_word, among=("white", "red", "blue", "yellow", "beige"))
    start = draw.between(20, 70)
    span = height * 0.62
    for k in range(4):
        arm = box(0.06, span, 0.05)
        cloth = box(0.32, span * 0.75, 0.03).moved(x=0.18, y=span * 0.22)
        toy.add(wooden(2), arm.turned("z", start + 90 * k).moved(y=hub, z=z))
        toy.add(plain(sail_word), cloth.turned("z", start + 90 * k).moved(y=hub, z=z))
    toy.detail(f"{with_article(cap_word)} cap")
    toy.detail(f"four {sail_word} sails")
    return toy


def lighthouse(draw: Draw) -> Toy:
    """A lighthouse, plain or with bands."""
    color = draw.color(among=("red", "blue", "teal", "orange", "black"))
    bands = draw.chance(0.65)
    toy = Toy("lighthouse", CATEGORY, f"{color} and white striped" if bands else "white")
    height, low = draw.between(2.2, 2.8), draw.between(0.55, 0.65)
    top, count = low * 0.62, 6
    for k in range(count):
        a, b = (low + (top - low) * f / count for f in (k, k + 1))
        word = color if bands and k % 2 == 0 else "white"
        toy.add(plain(word), cylinder(a, height / count + 0.001, b, 32).moved(y=height * k / count))
    toy.add(STONE, lathe([(low * 1.5, 0), (low * 1.35, 0.18)], 32))
    toy.add(
        plain("black"),
        lathe([(top * 0.9, 0), (top * 1.3, 0.06), (top * 1.3, 0.12)], 32).moved(y=height),
    )
    toy.add(GLASS, cylinder(top * 0.72, 0.42).moved(y=height + 0.1))
    toy.add(
        plain("yellow"),
        *(
            box(0.04, 0.42, top * 1.5).turned("y", 45 + 90 * k).moved(y=height + 0.1)
            for k in range(2)
        ),
    )
    toy.add(
        plain(color),
        dome(top * 0.86).moved(y=height + 0.5),
        ball(0.07, 10).moved(y=height + 0.5 + top * 0.9),
    )
    toy.add(wooden(1), box(0.34, 0.6, 0.12).moved(y=0.14, z=low - 0.04))
    place(toy, window(0.14, 0.2), 0, height * 0.6, low - (low - top) * 0.6 - 0.01, 0)
    toy.detail(f"{with_article(color)} roof")
    toy.detail("a wooden door")
    return toy


def tower_block(draw: Draw) -> Toy:
    """A tall block of flats with a grid of windows."""
    color = draw.color("green")
    walls = draw.pick((plain(color), BRICK, plain("grey"), plain("beige")))
    toy = Toy("apartment building", CATEGORY, f"tall {walls.word}")
    floors, across = draw.count(5, 8), draw.pick((3, 4))
    cell, storey = 0.44, 0.44
    side, height = across * cell + 0.16, floors * storey + 0.5
    toy.add(walls, box(side, height, side))
    pane = box(0.26, 0.28, 0.04)
    for floor in range(1, floors + 1):
        for k in range(across):
            x = (k - (across - 1) / 2) * cell
            for turn in (0, 90, 180, 270):
                toy.add(GLASS, pane.moved(x, floor * storey + 0.06, side / 2).turned("y", turn))
    toy.add(plain("white"), box(side + 0.1, 0.1, side + 0.1).moved(y=height))
    toy.add(plain("grey"), box(side * 0.4, 0.3, side * 0.35).moved(side * 0.15, height + 0.1, -0.1))
    if draw.chance():
        toy.add(
            plain("black"), limb((-side * 0.3, height, 0), (-side * 0.3, height + 0.8, 0), 0.025)
        )
        toy.detail("an antenna")
    door = draw.color(color, among=("red", "blue", "brown", "green"))
    toy.add(plain(door), box(0.5, 0.38, 0.1).moved(z=side / 2))
    toy.add(plain("white"), box(0.8, 0.07, 0.3).moved(y=0.4, z=side / 2 + 0.1))
    toy.detail(f"{plural(floors, 'floor')} of windows")
    toy.detail(f"{with_article(door)} door")
    toy.details.reverse()
    return toy


def hut(draw: Draw) -> Toy:
    """A round hut under a straw roof."""
    walls = draw.pick((plain("beige"), wooden(0), plain("orange"), STONE))
    toy = Toy("round hut", CATEGORY, walls.word)
    radius, height, pitch = draw.between(0.8, 1.0), draw.between(0.8, 1.0), draw.between(0.8, 1.1)
    toy.add(walls, cylinder(radius, height, segments=32))
    roof = [
        (radius * 1.3, -0.18),
        (radius * 1.32, -0.08),
        (radius * 0.7, pitch * 0.5),
        (0.0, pitch),
    ]
    toy.add(STRAW, lathe(roof, 32).moved(y=height))
    door = draw.color(among=("red", "blue", "green", "brown"))
    toy.add(plain(door), box(0.45, 0.68, 0.14).moved(z=radius - 0.05))
    for turn in (90, 180, 270):
        spot = radius - 0.02
        place(
            toy,
            window(0.24, 0.26),
            math.sin(math.radians(turn)) * spot,
            height * 0.4,
            math.cos(math.radians(turn)) * spot,
            turn,
        )
    toy.detail("a straw roof")
    toy.detail(f"{with_article(door)} door")
    return toy


def water_well(draw: Draw) -> Toy:
    """A well with a little roof and a bucket."""
    roof = draw.pick(ROOFS)
    ring_paint = draw.pick((STONE, BRICK))
    toy = Toy("well", CATEGORY, ring_paint.word)
    radius, pole = draw.between(0.55, 0.65), draw.between(1.35, 1.55)
    rim = [(radius, 0), (radius, 0.6), (radius - 0.14, 0.6), (radius - 0.14, 0.3)]
    toy.add(ring_paint, lathe(rim))
    toy.add(plain("blue"), cylinder(radius - 0.13, 0.06).moved(y=0.28))
    toy.add(wooden(1), *(box(0.1, pole, 0.1).moved(x=i * (radius - 0.06)) for i in (-1, 1)))
    toy.add(wooden(1), limb((-radius, pole * 0.75, 0), (radius + 0.15, pole * 0.75, 0), 0.05))
    toy.add(tiles(roof, 0.4), gable(2 * radius, 0.5, radius * 1.3, 0.12).moved(y=pole - 0.06))
    toy.add(wooden(2), limb((0, pole * 0.75, 0), (0, 0.95, 0), 0.015))
    toy.add(wooden(0), lathe([(0.1, 0), (0.14, 0.22), (0.11, 0.22), (0.09, 0.05)]).moved(y=0.75))
    toy.detail(f"{with_article(roof)} roof")
    toy.detail("a wooden bucket")
    return toy


def circus_tent(draw: Draw) -> Toy:
    """A striped round tent."""
    color = draw.color()
    other = draw.color(color, among=("white", "yellow"))
    toy = Toy("circus tent", CATEGORY, f"{color} and {other} striped")
    radius, height = draw.between(0.95, 1.15), draw.between(0.7, 0.9)
    cloth = striped(color, other, 2 * math.pi * radius / 10)
    toy.add(cloth, cylinder(radius, height, segments=40))
    big = radius * 1.12
    wide = striped(color, other, 2 * math.pi * big / 10)
    toy.add(
        wide,
        lathe([(big, 0), (big * 0.5, 0.38), (big * 0.16, 0.85), (0.0, 1.0)], 40).moved(y=height),
    )
    toy.add(plain(other), lathe([(big * 1.01, -0.1), (big * 1.01, 0.02)], 40).moved(y=height))
    toy.add(plain("black"), slab([(-0.3, 0), (0.3, 0), (0, 0.62)], 0.1).moved(z=radius - 0.02))
    flag = draw.color(color)
    toy.add(GOLDEN, limb((0, height + 0.9, 0), (0, height + 1.35, 0), 0.025))
    toy.add(plain(flag), slab([(0, 0), (0.34, 0.11), (0, 0.22)], 0.03).moved(y=height + 1.12))
    toy.detail(f"{with_article(flag)} flag on top")
    return toy


MAKERS = (house, castle, windmill, lighthouse, tower_block, hut, water_well, circus_tent)
