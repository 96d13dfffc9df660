"""Robots, bears, balls, blocks and figures; faces look along +z."""

from __future__ import annotations

import math

import numpy as np

from kiss3d_train.data.sources.toybox.build import Draw, Toy, plural, with_article
from kiss3d_train.data.sources.toybox.paint import (
    DARK_METAL,
    GOLDEN,
    HAIR,
    METAL,
    SKIN,
    Paint,
    checked,
    dotted,
    plain,
    striped,
)
from kiss3d_train.data.sources.toybox.solids import (
    Array,
    Solid,
    ball,
    box,
    cylinder,
    dome,
    lathe,
    limb,
    ring,
    rounded_box,
    slab,
)

CATEGORY = "toy"


def _lifted_tail(points: Array) -> Array:
    lift = np.clip(-points[:, 2] - 0.2, 0, None) ** 2 * 2.2
    return np.stack([0 * lift, lift, 0 * lift], axis=1)


def pair(solid: Solid) -> tuple[Solid, Solid]:
    """A solid and its mirror image."""
    return solid, solid.mirrored()


def robot(draw: Draw) -> Toy:
    """A boxy robot with antennae, on legs or on tracks."""
    color = draw.color()
    second = draw.accent(color, "black")
    eyes = draw.color(color, second, among=("yellow", "light blue", "green", "red"))
    toy = Toy("robot", CATEGORY, color)
    body, trim = plain(color), plain(second)
    width, height = draw.between(0.6, 0.78), draw.between(0.6, 0.75)
    tracks = draw.chance(0.4)
    hip = 0.32 if tracks else draw.between(0.42, 0.55)
    toy.add(body, rounded_box(width, height, 0.46, 0.06).moved(y=hip))
    toy.add(
        trim,
        rounded_box(width * 0.62, height * 0.45, 0.06, 0.02).moved(y=hip + height * 0.4, z=0.22),
    )
    for k in range(3):
        knob = cylinder(0.04, 0.05, segments=12).turned("x", 90)
        toy.add(
            plain(("red", "yellow", "green")[k]),
            knob.moved((k - 1) * 0.13, hip + height * 0.62, 0.24),
        )
    neck = hip + height
    toy.add(METAL, cylinder(0.1, 0.12).moved(y=neck - 0.02))
    size = draw.between(0.46, 0.56)
    toy.add(body, rounded_box(size, size * 0.8, 0.42, 0.07).moved(y=neck + 0.06))
    face = neck + 0.06 + size * 0.45
    toy.add(
        plain(eyes), *pair(cylinder(0.075, 0.06).turned("x", 90).moved(size * 0.22, face, 0.18))
    )
    toy.add(DARK_METAL, box(size * 0.5, 0.05, 0.05).moved(y=face - size * 0.3, z=0.2))
    top = neck + 0.06 + size * 0.8
    if draw.chance():
        toy.add(METAL, *pair(limb((0.12, top - 0.03, 0), (0.2, top + 0.2, 0), 0.016)))
        toy.add(trim, *pair(ball(0.05, 12).moved(0.2, top + 0.22)))
        toy.detail("two antennas")
    else:
        toy.add(METAL, limb((0, top - 0.03, 0), (0, top + 0.2, 0), 0.02))
        toy.add(trim, ball(0.06, 12).moved(0, top + 0.22))
        toy.detail("an antenna")
    shoulder, lift = neck - 0.14, draw.between(-0.35, 0.3)
    hand = (width / 2 + 0.26, shoulder - 0.3 + lift, 0.16)
    toy.add(METAL, *pair(limb((width / 2, shoulder, 0), (width / 2 + 0.16, shoulder, 0), 0.07)))
    toy.add(trim, *pair(limb((width / 2 + 0.16, shoulder, 0), hand, 0.065)))
    toy.add(METAL, *pair(ball(0.095, 14).moved(*hand)))
    if tracks:
        tread = rounded_box(0.26, 0.34, 0.8, 0.165)
        toy.add(plain("black"), *pair(tread.moved(x=width / 2 - 0.08)))
        toy.add(
            trim,
            *pair(
                lathe([(0.1, -0.15), (0.1, 0.15)])
                .turned("z", 90)
                .moved(width / 2 - 0.08, 0.17, 0.2)
            ),
        )
        toy.detail("black tracks")
    else:
        toy.add(METAL, *pair(limb((width * 0.26, 0.1, 0), (width * 0.26, hip, 0), 0.075)))
        toy.add(trim, *pair(rounded_box(0.26, 0.14, 0.4, 0.05).moved(width * 0.26, 0, 0.06)))
        toy.detail(f"{second} feet")
    return toy


def teddy_bear(draw: Draw) -> Toy:
    """A sitting teddy bear."""
    color = draw.color(among=("brown", "beige", "pink", "orange", "light blue", "grey"))
    toy = Toy("teddy bear", CATEGORY, color)
    fur = plain(color)
    light = Paint(color, tuple(min(1.0, 0.55 + 0.5 * c) for c in fur.color))  # type: ignore[arg-type]
    toy.add(fur, ball(1, 24).scaled(0.36, 0.42, 0.33).moved(y=0.42))
    toy.add(light, ball(1, 20).scaled(0.25, 0.3, 0.1).moved(y=0.42, z=0.26))
    toy.add(fur, ball(1, 24).scaled(0.33, 0.3, 0.3).moved(y=1.0))
    toy.add(light, ball(1, 18).scaled(0.15, 0.12, 0.14).moved(y=0.93, z=0.25))
    toy.add(plain("black"), ball(1, 12).scaled(0.055, 0.04, 0.04).moved(y=0.98, z=0.38))
    toy.add(plain("black"), *pair(ball(0.035, 10).moved(0.12, 1.07, 0.265)))
    ear = ball(1, 16).scaled(0.12, 0.12, 0.06).moved(0.25, 1.25, 0)
    toy.add(fur, *pair(ear))
    toy.add(light, *pair(ball(1, 14).scaled(0.075, 0.075, 0.04).moved(0.25, 1.25, 0.035)))
    toy.add(fur, *pair(limb((0.3, 0.66, 0.05), (0.48, 0.36, 0.2), 0.11, 0.12)))
    toy.add(fur, *pair(limb((0.2, 0.16, 0.1), (0.34, 0.15, 0.5), 0.14, 0.15)))
    toy.add(light, *pair(ball(1, 14).scaled(0.1, 0.1, 0.05).moved(0.36, 0.16, 0.63)))
    bow = draw.color(color)
    if draw.chance():
        loop = slab([(0.02, 0), (0.2, 0.1), (0.2, -0.1)], 0.07)
        toy.add(plain(bow), *pair(loop.moved(y=0.74, z=0.28)), ball(0.05, 10).moved(y=0.74, z=0.3))
        toy.detail(f"{with_article(bow)} bow tie")
    else:
        toy.add(plain(bow), ring(0.235, 0.055).scaled(y=1.1).moved(y=0.76))
        toy.detail(f"{with_article(bow)} scarf")
    return toy


def snowman(draw: Draw) -> Toy:
    """A snowman with a hat and a scarf."""
    hat, scarf = draw.color(among=("black", "red", "blue", "green", "purple")), draw.color("orange")
    toy = Toy("snowman", CATEGORY)
    snow = plain("white")
    toy.add(
        snow,
        ball(0.45, 24).scaled(y=0.92).moved(y=0.4),
        ball(0.33, 24).moved(y=1.0),
        ball(0.25, 24).moved(y=1.47),
    )
    toy.add(plain("black"), *pair(ball(0.032, 10).moved(0.09, 1.54, 0.22)))
    toy.add(
        plain("black"),
        *(ball(0.035, 10).moved(y=y, z=z) for y, z in ((0.9, 0.31), (1.05, 0.325), (1.19, 0.28))),
    )
    toy.add(
        plain("orange"), lathe([(0.045, 0), (0.0, 0.26)], 14).turned("x", 90).moved(y=1.47, z=0.22)
    )
    toy.add(plain(hat), lathe([(0.28, 0), (0.28, 0.04), (0.17, 0.05), (0.18, 0.32)]).moved(y=1.64))
    toy.add(
        plain(scarf),
        ring(0.2, 0.06).moved(y=1.26),
        rounded_box(0.12, 0.34, 0.07, 0.03).turned("x", -14).moved(0.12, 0.94, 0.33),
    )
    toy.add(plain("brown"), *pair(limb((0.28, 1.08, 0), (0.68, 1.3, 0.05), 0.022)))
    toy.add(plain("brown"), *pair(limb((0.55, 1.23, 0.03), (0.62, 1.38, 0.08), 0.016)))
    toy.detail(f"{with_article(hat)} hat")
    toy.detail(f"{with_article(scarf)} scarf")
    return toy


def stacking_rings(draw: Draw) -> Toy:
    """Rings of falling size on a peg."""
    toy = Toy("ring stacking toy", CATEGORY)
    count = draw.count(3, 6)
    colors: list[str] = []
    for _ in range(count):
        colors.append(draw.color(*colors))
    toy.add(draw.wood(), lathe([(0.52, 0), (0.5, 0.08)]))
    y = 0.08
    for k, word in enumerate(colors):
        thick = 0.12
        toy.add(plain(word), ring(0.44 - 0.05 * k, thick).moved(y=y + thick))
        y += 1.86 * thick
    toy.add(draw.wood(), cylinder(0.1, y + 0.08, 0.08))
    knob = draw.color(*colors)
    toy.add(plain(knob), ball(0.15).moved(y=y + 0.16))
    toy.detail(f"{plural(count, 'ring')} in {', '.join(colors[:-1])} and {colors[-1]}")
    return toy


def spinning_top(draw: Draw) -> Toy:
    """A spinning top on its tip."""
    color = draw.color()
    second = draw.color(color)
    kind = draw.pick((plain(color), striped(color, second, 0.55)))
    toy = Toy("spinning top", CATEGORY, kind.word)
    low = [(0.0, 0), (0.05, 0.06), (0.34, 0.36), (0.5, 0.55), (0.52, 0.62)]
    toy.add(kind, lathe([*low, (0.46, 0.7), (0.2, 0.8), (0.08, 0.84)], 36))
    toy.add(plain(second), lathe([(0.525, 0.57), (0.54, 0.615), (0.525, 0.66)], 36))
    toy.add(draw.wood(), lathe([(0.05, 0.8), (0.045, 1.12), (0.09, 1.16), (0.07, 1.24)]))
    toy.detail(f"{with_article(second)} rim")
    toy.detail("a wooden peg")
    return toy


def toy_ball(draw: Draw) -> Toy:
    """A patterned ball."""
    color = draw.color()
    second = draw.color(color, among=("white", "yellow", "blue", "red", "black"))
    turn = 2 * math.pi
    kind = draw.pick(
        (
            striped(color, second, turn / 4),
            dotted(color, second, turn / 5),
            checked(color, second, turn / 4),
        )
    )
    toy = Toy("ball", CATEGORY, kind.word)
    toy.add(kind, ball(1, 40))
    return toy


def duck(draw: Draw) -> Toy:
    """A rubber duck, seen from the front at +z."""
    color = draw.color("orange", among=("yellow", "light blue", "pink", "green", "red", "purple"))
    toy = Toy("rubber duck", CATEGORY, color)
    skin = plain(color)
    body = ball(1, 28).scaled(0.42, 0.34, 0.56).bent(_lifted_tail).moved(y=0.32)
    toy.add(skin, body, ball(0.29, 24).moved(y=0.82, z=0.26))
    bill = ball(1, 16).scaled(0.14, 0.05, 0.17).moved(y=0.78, z=0.53)
    toy.add(plain("orange"), bill)
    toy.add(plain("black"), *pair(ball(0.042, 10).moved(0.14, 0.9, 0.48)))
    toy.add(
        skin, *pair(ball(1, 18).scaled(0.09, 0.2, 0.32).turned("x", 18).moved(0.4, 0.38, -0.06))
    )
    toy.detail("an orange bill")
    extra = draw.pick(("", "hat", "scarf"))
    word = draw.color(color, "orange")
    if extra == "hat":
        toy.add(
            plain(word),
            lathe([(0.26, 0), (0.26, 0.03), (0.15, 0.04), (0.15, 0.24)]).moved(y=1.05, z=0.24),
        )
    elif extra:
        toy.add(plain(word), ring(0.23, 0.06).moved(y=0.6, z=0.2))
    if extra:
        toy.detail(f"{with_article(word)} {extra}")
    return toy


def block_tower(draw: Draw) -> Toy:
    """A tower of toy blocks."""
    toy = Toy("tower of toy blocks", CATEGORY)
    count = draw.count(3, 5)
    colors: list[str] = []
    y = 0.0
    for k in range(count):
        colors.append(draw.color(*colors))
        size = 0.5 - 0.05 * k
        block = rounded_box(size, 0.42, size, 0.04).turned("y", draw.between(-25, 25))
        toy.add(
            plain(colors[-1]), block.moved(draw.between(-0.03, 0.03), y, draw.between(-0.03, 0.03))
        )
        y += 0.42
    top = draw.color(*colors)
    if draw.chance():
        toy.add(plain(top), box(0.3, 0.3, 0.3, 0.001).moved(y=y))
        toy.detail(f"{with_article(top)} pyramid on top")
    else:
        toy.add(plain(top), ball(0.16).moved(y=y + 0.15))
        toy.detail(f"{with_article(top)} ball on top")
    toy.look = f"{', '.join(colors[:-1])} and {colors[-1]}"
    return toy


def person(draw: Draw) -> Toy:
    """A standing figure in plain clothes."""
    shirt, trousers = (
        draw.color(),
        draw.color(among=("blue", "black", "grey", "brown", "green", "purple")),
    )
    hair_word = draw.pick(tuple(HAIR))
    skin, hair = Paint("skin", draw.pick(SKIN)), Paint(hair_word, HAIR[hair_word])
    toy = Toy("person", "figure")
    hip, shoulder = 0.86, 1.4
    cloth, legs = plain(shirt), plain(trousers)
    spread = draw.between(0.1, 0.15)
    toy.add(legs, *pair(limb((0.095, hip, 0), (spread, 0.12, 0), 0.1, 0.07)))
    toy.add(plain("black"), *pair(rounded_box(0.13, 0.1, 0.27, 0.045).moved(spread, 0, 0.05)))
    trunk = [(0.15, hip - 0.08), (0.185, hip), (0.165, hip + 0.16), (0.2, shoulder - 0.16)]
    toy.add(
        cloth,
        lathe(
            [*trunk, (0.2, shoulder - 0.05), (0.12, shoulder + 0.03), (0.07, shoulder + 0.05)]
        ).scaled(x=1.12, z=0.72),
    )
    toy.add(
        legs,
        lathe([(0.11, hip - 0.13), (0.19, hip - 0.06), (0.19, hip + 0.02)]).scaled(x=1.1, z=0.74),
    )
    raised = draw.chance(0.35)
    elbow = (0.4, 1.24, 0.02) if raised else (0.31, 1.1, 0.0)
    hand = (0.46, 1.52, 0.1) if raised else (0.33, 0.86, 0.1)
    rest = (-0.31, 1.1, 0.0), (-0.33, 0.86, 0.1)
    for side, (a, b) in ((1, (elbow, hand)), (-1, rest)):
        toy.add(cloth, limb((side * 0.2, shoulder - 0.05, 0), a, 0.075, 0.06))
        toy.add(skin, limb(a, b, 0.05, 0.042), ball(0.062, 12).moved(*b))
    toy.add(skin, cylinder(0.06, 0.14).moved(y=shoulder + 0.02))
    head = shoulder + 0.28
    toy.add(skin, ball(1, 24).scaled(0.14, 0.17, 0.155).moved(y=head))
    toy.add(
        skin,
        ball(0.028, 10).moved(y=head - 0.02, z=0.155),
        *pair(ball(0.035, 10).moved(0.138, head - 0.01, 0)),
    )
    toy.add(plain("black"), *pair(ball(0.019, 8).moved(0.055, head + 0.03, 0.138)))
    hat = draw.chance(0.4)
    if hat:
        word = draw.color(shirt)
        toy.add(
            plain(word),
            dome(0.165).moved(y=head + 0.05),
            rounded_box(0.22, 0.03, 0.2, 0.014).moved(y=head + 0.05, z=0.18),
        )
        toy.add(hair, ball(1, 16).scaled(0.148, 0.13, 0.13).moved(y=head - 0.01, z=-0.035))
    else:
        toy.add(hair, ball(1, 20).scaled(0.155, 0.15, 0.155).moved(y=head + 0.055, z=-0.03))
        if draw.chance(0.4):
            toy.add(hair, rounded_box(0.25, 0.32, 0.1, 0.045).moved(y=head - 0.24, z=-0.11))
    toy.detail(f"{with_article(shirt)} shirt")
    toy.detail(f"{trousers} trousers")
    toy.detail(f"{with_article(word)} cap" if hat else f"{hair_word} hair")
    if raised:
        toy.detail("a raised hand")
    return toy


def dog(draw: Draw) -> Toy:
    """A standing toy dog."""
    color = draw.color(among=("brown", "beige", "grey", "orange", "black", "white"))
    collar = draw.color(color)
    toy = Toy("toy dog", CATEGORY, color)
    fur = plain(color)
    dark = plain("brown") if color in ("beige", "white", "orange", "grey") else plain("beige")
    length = draw.between(0.6, 0.85)
    toy.add(fur, limb((0, 0.58, -length / 2), (0, 0.6, length / 2), 0.2, 0.22))
    for z in (-length / 2, length / 2):
        toy.add(fur, *pair(limb((0.12, 0.5, z), (0.13, 0.08, z + 0.02), 0.085, 0.075)))
        toy.add(dark, *pair(ball(1, 14).scaled(0.09, 0.065, 0.11).moved(0.13, 0.065, z + 0.05)))
    z = length / 2
    toy.add(fur, limb((0, 0.68, z), (0, 0.92, z + 0.14), 0.15, 0.13))
    toy.add(fur, ball(1, 22).scaled(0.2, 0.19, 0.2).moved(y=1.0, z=z + 0.18))
    toy.add(fur, limb((0, 0.94, z + 0.28), (0, 0.93, z + 0.42), 0.105, 0.085))
    toy.add(plain("black") if color != "black" else dark, ball(0.045, 12).moved(y=0.97, z=z + 0.5))
    toy.add(
        plain("white") if color == "black" else plain("black"),
        *pair(ball(0.03, 10).moved(0.085, 1.07, z + 0.34)),
    )
    toy.add(
        dark, *pair(ball(1, 16).scaled(0.06, 0.17, 0.1).turned("z", 18).moved(0.21, 0.97, z + 0.14))
    )
    toy.add(dark, limb((0, 0.66, -z - 0.14), (0, 0.95, -z - 0.34), 0.06, 0.035))
    toy.add(plain(collar), ring(0.15, 0.04).turned("x", 30).moved(y=0.84, z=z + 0.09))
    toy.add(GOLDEN, ball(0.045, 10).moved(y=0.76, z=z + 0.25))
    toy.detail(f"{dark.word} ears")
    toy.detail(f"{with_article(collar)} collar")
    return toy


MAKERS = (
    robot,
    person,
    teddy_bear,
    duck,
    stacking_rings,
    snowman,
    dog,
    spinning_top,
    toy_ball,
    block_tower,
)
