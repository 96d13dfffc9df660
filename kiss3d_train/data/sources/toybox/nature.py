"""Trees, plants in pots and mushrooms."""

from __future__ import annotations

import math
from dataclasses import replace

from kiss3d_train.data.sources.toybox.build import Draw, Toy, plural, with_article
from kiss3d_train.data.sources.toybox.household import glaze
from kiss3d_train.data.sources.toybox.paint import (
    LEAVES,
    plain,
    wooden,
)
from kiss3d_train.data.sources.toybox.solids import (
    ball,
    cylinder,
    lathe,
    limb,
    tube,
)


def tree(draw: Draw) -> Toy:
    """A broad-leaved tree or a fir."""
    fir = draw.chance(0.45)
    toy = Toy("fir tree" if fir else "tree", "nature")
    trunk = draw.between(0.5, 0.8)
    bark = replace(wooden(2, 0.3), word="brown")
    if fir:
        tiers = draw.count(3, 4)
        toy.add(bark, cylinder(0.13, trunk, 0.1))
        for k in range(tiers):
            radius = 0.75 * (1 - k / (tiers + 0.6))
            toy.add(
                LEAVES,
                lathe([(radius, 0), (radius * 0.95, 0.05), (0.0, 0.85)], 20).moved(
                    y=trunk - 0.15 + 0.5 * k
                ),
            )
        toy.look = "tall green"
        toy.detail(f"{plural(tiers, 'tier')} of branches")
        return toy
    crown = draw.pick((LEAVES, LEAVES, plain("orange"), plain("pink"), plain("yellow")))
    toy.look = crown.word
    toy.add(bark, lathe([(0.22, 0), (0.14, 0.12), (0.1, trunk), (0.08, trunk + 0.4)]))
    toy.add(
        bark,
        *(
            limb((0, trunk, 0), (0.36 * math.sin(a), trunk + 0.38, 0.36 * math.cos(a)), 0.06, 0.035)
            for a in (0.4, 2.5, 4.4)
        ),
    )
    toy.add(crown, ball(0.55, 20).moved(y=trunk + 0.75))
    for k in range(5):
        angle = 2 * math.pi * k / 5 + draw.between(-0.3, 0.3)
        size = draw.between(0.3, 0.42)
        toy.add(
            crown,
            ball(size, 16).moved(
                0.42 * math.sin(angle), trunk + draw.between(0.45, 0.8), 0.42 * math.cos(angle)
            ),
        )
    if draw.chance(0.4) and crown is LEAVES:
        fruit = draw.pick(("red", "orange", "yellow"))
        for k in range(14):
            angle, height = 2.4 * k, (k / 13) * 1.6 - 0.7
            r = 0.6 * math.sqrt(max(0.0, 1 - height * height)) + 0.14
            toy.add(
                plain(fruit),
                ball(0.075, 10).moved(
                    r * math.sin(angle), trunk + 0.72 + 0.55 * height, r * math.cos(angle)
                ),
            )
        toy.detail(f"{fruit} fruit")
    toy.detail("a brown trunk")
    return toy


def potted_plant(draw: Draw) -> Toy:
    """A cactus or a leafy plant in a pot."""
    color = draw.color("green")
    kind = glaze(draw, color, 0.4)
    cactus = draw.chance()
    toy = Toy("cactus" if cactus else "potted plant", "nature", "green" if cactus else "")
    toy.add(
        kind,
        lathe([(0.27, 0), (0.36, 0.4), (0.41, 0.4), (0.41, 0.52), (0.36, 0.52), (0.35, 0.44)], 28),
    )
    toy.add(plain("brown"), cylinder(0.35, 0.04).moved(y=0.42))
    green = plain("green")
    if cactus:
        height = draw.between(0.8, 1.1)
        toy.add(green, limb((0, 0.5, 0), (0, 0.45 + height, 0), 0.19, 0.17))
        for side in draw.pick(((1,), (-1,), (1, -1))):
            y = 0.45 + height * draw.between(0.35, 0.6)
            bend = [
                (side * 0.1, y, 0),
                (side * 0.34, y + 0.02, 0),
                (side * 0.4, y + 0.12, 0),
                (side * 0.4, y + 0.4, 0),
            ]
            toy.add(
                green,
                tube(bend, 0.1),
                ball(0.1, 14).moved(side * 0.4, y + 0.4),
                ball(0.12, 14).moved(side * 0.37, y + 0.05),
            )
        flower = draw.color("green")
        toy.add(plain(flower), ball(1, 12).scaled(0.1, 0.08, 0.1).moved(y=0.62 + height))
        toy.detail(f"{with_article(flower)} flower")
    else:
        leaves = draw.count(7, 10)
        for k in range(leaves):
            lean = 18 + 38 * (k % 3) / 2
            leaf = ball(1, 16).scaled(0.13, draw.between(0.4, 0.55), 0.03).moved(y=0.48)
            toy.add(LEAVES, leaf.turned("x", lean).turned("y", 137.5 * k).moved(y=0.44))
    toy.detail(f"{with_article(kind.word)} pot")
    return toy


def mushroom(draw: Draw) -> Toy:
    """A mushroom with a spotted cap."""
    color = draw.color("green")
    toy = Toy("mushroom", "nature", color)
    stem, cap = draw.between(0.55, 0.8), draw.between(0.5, 0.62)
    toy.add(plain("beige"), lathe([(0.26, 0), (0.2, 0.1), (0.15, stem * 0.6), (0.17, stem + 0.1)]))
    rows = [(0.12, 0.02), (cap * 0.98, 0.0), (cap, 0.05)]
    rows += [(cap * math.cos(t), 0.05 + cap * 0.78 * math.sin(t)) for t in (0.3, 0.6, 0.9, 1.2)]
    toy.add(plain(color), lathe([*rows, (0.0, 0.05 + cap * 0.78)], 32).moved(y=stem))
    toy.add(plain("beige"), lathe([(0.2, -0.06), (0.28, -0.1), (0.18, 0.02)]).moved(y=stem * 0.78))
    for k in range(9):
        t, a = (0.35, 0.75, 1.15)[k % 3], 2.4 * k
        out = (math.cos(t) * math.sin(a), 0.78 * math.sin(t), math.cos(t) * math.cos(a))
        spot = ball(1, 12).scaled(0.085, 0.085, 0.085)
        toy.add(
            plain("white"),
            spot.moved(cap * 0.96 * out[0], stem + 0.05 + cap * 0.96 * out[1], cap * 0.96 * out[2]),
        )
    toy.detail("white spots")
    return toy


MAKERS = (tree, potted_plant, mushroom)
