"""Hand tools, standing upright with the handle down unless they stand on their own."""

from __future__ import annotations

import numpy as np

from kiss3d_train.data.sources.toybox.build import Draw, Toy, with_article
from kiss3d_train.data.sources.toybox.paint import (
    DARK_METAL,
    METAL,
    STRAW,
    Paint,
    plain,
    striped,
)
from kiss3d_train.data.sources.toybox.solids import (
    arc,
    box,
    cylinder,
    lathe,
    limb,
    ring,
    rounded_box,
    slab,
    tube,
)

CATEGORY = "tool"


def handle_paint(draw: Draw) -> Paint:
    """What a tool's handle is made of."""
    return draw.pick((draw.wood(), plain(draw.color()), plain(draw.color())))


def hammer(draw: Draw) -> Toy:
    """A claw hammer or a mallet."""
    grip = handle_paint(draw)
    mallet = draw.chance(0.4)
    head = draw.pick((draw.wood(), plain("black"))) if mallet else METAL
    toy = Toy("mallet" if mallet else "claw hammer", CATEGORY)
    length = draw.between(0.95, 1.2)
    shaft = [(0.055, 0), (0.075, 0.05), (0.06, length * 0.35), (0.045, length * 0.6)]
    toy.add(grip, lathe([*shaft, (0.045, length)]).scaled(x=0.8))
    y = length - 0.04
    if mallet:
        size = draw.between(0.15, 0.19)
        barrel = [(size * 0.9, -0.3), (size, -0.24), (size, 0.24), (size * 0.9, 0.3)]
        toy.add(head, lathe(barrel).turned("z", 90).moved(y=y))
    else:
        face = lathe([(0.1, 0.42), (0.1, 0.34), (0.06, 0.28), (0.065, 0.0)][::-1])
        toy.add(
            METAL,
            face.turned("z", -90).moved(y=y),
            rounded_box(0.16, 0.18, 0.14, 0.03).moved(y=y - 0.09),
        )
        curve = arc(0.42, 85, 150, 7, center=(-0.02, -0.35))
        inner = arc(0.34, 150, 85, 7, center=(-0.02, -0.33))
        claw = slab(np.concatenate([curve, inner]), 0.045)
        toy.add(METAL, claw.moved(0, y, 0.045), claw.moved(0, y, -0.045))
    toy.detail(f"a {head.word} head")
    toy.detail(f"{with_article(grip.word)} handle")
    return toy


def screwdriver(draw: Draw) -> Toy:
    """A screwdriver standing on its handle."""
    color = draw.color()
    second = draw.color(color, among=("black", "yellow", "white"))
    toy = Toy("screwdriver", CATEGORY, color)
    grip = [(0.08, 0), (0.12, 0.04), (0.13, 0.2), (0.1, 0.42), (0.12, 0.52), (0.07, 0.58)]
    toy.add(plain(color), lathe(grip))
    toy.add(plain(second), lathe([(0.135, 0), (0.135, 0.1)]).moved(y=0.16))
    blade = draw.between(0.6, 0.8)
    toy.add(METAL, cylinder(0.035, blade).moved(y=0.56))
    toy.add(METAL, box(0.1, 0.16, 0.05, (0.9, 0.25)).moved(y=0.54 + blade))
    toy.detail(f"a {second} band")
    toy.detail("a flat metal blade")
    return toy


def shovel(draw: Draw) -> Toy:
    """A shovel standing on its blade."""
    blade, shaft = draw.pick((METAL, plain(draw.color()))), draw.wood()
    toy = Toy("shovel", CATEGORY, blade.word)
    length, width = draw.between(1.0, 1.3), draw.between(0.2, 0.26)
    outline = [(0, 0), (width * 0.6, 0.1), (width, 0.28), (width, 0.56), (-width, 0.56)]
    outline += [(-width, 0.28), (-width * 0.6, 0.1)]
    toy.add(blade, slab(outline, 0.04).turned("x", -9).moved(z=0.09))
    toy.add(blade, limb((0, 0.42, 0.0), (0, 0.72, 0.0), 0.055, 0.045))
    toy.add(shaft, limb((0, 0.65, 0), (0, 0.55 + length, 0), 0.035))
    color = draw.color()
    top = 0.55 + length
    hoop = [(1.3 * x, y, 0) for x, y in arc(0.11, 0, 330, 12, center=(0, top + 0.12))]
    toy.add(plain(color), tube(hoop, 0.032, closed=True))
    toy.detail("a wooden shaft")
    toy.detail(f"{with_article(color)} grip")
    return toy


def axe(draw: Draw) -> Toy:
    """An axe standing on its handle."""
    grip = handle_paint(draw)
    color = draw.color(grip.word)
    toy = Toy("axe", CATEGORY)
    length = draw.between(1.1, 1.35)
    shaft = slab(
        [(-0.04, 0), (0.06, 0), (0.05, 0.12), (0.035, length), (-0.035, length), (-0.03, 0.2)],
        0.055,
    )
    toy.add(grip, shaft)
    y = length - 0.34
    body = slab(
        [(-0.08, 0.06), (0.1, 0.07), (0.24, 0.0), (0.24, 0.32), (0.1, 0.25), (-0.08, 0.25)], 0.09
    )
    edge = slab([(0.23, 0.0), (0.33, -0.05), (0.38, 0.16), (0.33, 0.37), (0.23, 0.32)], 0.06)
    toy.add(plain(color), body.moved(y=y))
    toy.add(METAL, edge.moved(y=y))
    toy.detail(f"{with_article(color)} head")
    toy.detail(f"{with_article(grip.word)} handle")
    return toy


def broom(draw: Draw) -> Toy:
    """A broom standing on its bristles."""
    color = draw.color()
    straw = draw.chance()
    toy = Toy("broom", CATEGORY, "" if straw else color)
    bristles = STRAW if straw else plain(color)
    length = draw.between(1.1, 1.4)
    toy.add(bristles, box(0.62, 0.42, 0.2, (0.5, 0.7)))
    toy.add(
        plain("red") if straw else plain("black"), rounded_box(0.36, 0.09, 0.17, 0.03).moved(y=0.36)
    )
    shaft = draw.wood()
    toy.add(shaft, limb((0, 0.4, 0), (0, 0.4 + length, 0), 0.035))
    toy.details += ["straw bristles", "a red band"] if straw else [f"{color} bristles"]
    toy.detail("a wooden handle")
    return toy


def paintbrush(draw: Draw) -> Toy:
    """A flat paintbrush, bristles up, dipped in paint."""
    wet = draw.color()
    grip = handle_paint(draw)
    toy = Toy("paintbrush", CATEGORY, grip.word)
    outline = [
        (-0.05, 0),
        (0.05, 0),
        (0.08, 0.15),
        (0.055, 0.45),
        (0.2, 0.72),
        (-0.2, 0.72),
        (-0.055, 0.45),
        (-0.08, 0.15),
    ]
    toy.add(grip, slab(outline, 0.09))
    toy.add(METAL, rounded_box(0.46, 0.2, 0.14, 0.03).moved(y=0.68))
    toy.add(plain("beige"), box(0.44, 0.24, 0.12).moved(y=0.86))
    toy.add(plain(wet), box(0.45, draw.between(0.2, 0.3), 0.13, (0.9, 0.4)).moved(y=1.05))
    toy.detail(f"{wet} paint on its tip")
    return toy


def bucket(draw: Draw) -> Toy:
    """A bucket with a wire handle."""
    color = draw.color()
    kind = draw.pick((plain(color), METAL, striped(color, "white", 0.4)))
    toy = Toy("bucket", CATEGORY, kind.word)
    low, high, height = 0.38, draw.between(0.48, 0.55), draw.between(0.75, 0.95)
    toy.add(kind, lathe([(low, 0), (high, height), (high - 0.04, height), (low - 0.03, 0.06)], 32))
    toy.add(DARK_METAL, ring(high, 0.03).moved(y=height - 0.01))
    up = draw.chance(0.7)
    bow = [(x, y, 0.0) for x, y in arc(high + 0.02, 0, 180, 17)]
    wire = tube(bow, 0.022).turned("x", 15 if up else 70)
    toy.add(DARK_METAL, wire.moved(y=height - 0.08))
    fill = draw.pick(("", "water", "sand"))
    if fill:
        top = cylinder(high - 0.07, 0.05).moved(y=height * 0.86)
        toy.add(plain("blue" if fill == "water" else "yellow"), top)
        toy.detail("blue water inside" if fill == "water" else "yellow sand inside")
    toy.detail("a wire handle")
    return toy


MAKERS = (hammer, screwdriver, bucket, shovel, axe, paintbrush, broom)
