"""Crockery, bottles, clocks, presents and sweets."""

from __future__ import annotations

import math

from kiss3d_train.data.sources.toybox.build import Draw, Toy, listed, plural, with_article
from kiss3d_train.data.sources.toybox.paint import (
    GOLDEN,
    METAL,
    Paint,
    checked,
    dotted,
    plain,
    striped,
    wooden,
)
from kiss3d_train.data.sources.toybox.solids import (
    arc,
    ball,
    box,
    cylinder,
    dome,
    lathe,
    limb,
    ring,
    rounded_box,
    tube,
)


def glaze(draw: Draw, color: str, size: float) -> Paint:
    """A plain, striped or dotted surface led by `color`."""
    other = draw.color(color, among=("white", "yellow", "blue", "pink"))
    return draw.pick(
        (plain(color), plain(color), striped(color, other, size), dotted(color, other, size))
    )


def mug(draw: Draw) -> Toy:
    """A mug with a handle on its right."""
    color = draw.color()
    radius, height = draw.between(0.36, 0.44), draw.between(0.75, 0.95)
    kind = glaze(draw, color, 2 * math.pi * radius / 6)
    toy = Toy("mug", "household", kind.word)
    wall = [(radius * 0.92, 0), (radius, 0.06), (radius, height), (radius - 0.05, height)]
    toy.add(kind, lathe([*wall, (radius - 0.05, 0.08)], 32))
    bow = [
        (x, y, 0) for x, y in arc(height * 0.29, -95, 95, 13, center=(radius - 0.02, height * 0.52))
    ]
    toy.add(plain(color), tube(bow, 0.055).scaled(z=1.2))
    if draw.chance(0.6):
        toy.add(plain("brown"), cylinder(radius - 0.04, 0.02, segments=32).moved(y=height * 0.84))
        toy.detail("coffee inside")
    return toy


def teapot(draw: Draw) -> Toy:
    """A round teapot, spout to the right."""
    color = draw.color()
    lid = draw.accent(color, "black")
    kind = glaze(draw, color, 0.5)
    toy = Toy("teapot", "household", kind.word)
    squash = draw.between(0.75, 0.95)
    toy.add(kind, ball(0.55, 32).scaled(y=squash).moved(y=0.5))
    toy.add(plain(color), cylinder(0.32, 0.08, 0.36).moved(y=0.02))
    top = 0.5 + 0.55 * squash
    toy.add(
        plain(lid),
        lathe([(0.26, -0.06), (0.27, 0.0), (0.16, 0.09)]).moved(y=top - 0.02),
        ball(0.075).moved(y=top + 0.12),
    )
    spout = [(0.42, 0.42, 0), (0.64, 0.5, 0), (0.76, 0.68, 0), (0.86, 0.9, 0)]
    toy.add(plain(color), tube(spout, [0.15, 0.11, 0.085, 0.07]))
    bow = [(x, y, 0) for x, y in arc(0.27, 80, 280, 15, center=(-0.5, 0.52))]
    toy.add(plain(color), tube(bow, 0.05))
    toy.detail(f"{with_article(lid)} lid")
    return toy


def vase(draw: Draw) -> Toy:
    """A vase with flowers."""
    color, flower = draw.color("green"), draw.color("green")
    kind = glaze(draw, color, 0.4)
    toy = Toy("vase", "household", kind.word)
    belly, neck, height = (
        draw.between(0.26, 0.36),
        draw.between(0.1, 0.15),
        draw.between(0.75, 0.95),
    )
    rows = [(0.16, 0), (0.18, 0.03)] + [
        (
            neck + (belly - neck) * math.sin(math.pi * min(1.0, t * 1.12)) ** 1.2 + 0.05 * (1 - t),
            0.03 + t * height,
        )
        for t in (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85)
    ]
    mouth = height + 0.03
    rows += [
        (neck, mouth - 0.03),
        (neck + 0.06, mouth + 0.04),
        (neck + 0.03, mouth + 0.04),
        (neck - 0.03, mouth - 0.08),
    ]
    toy.add(kind, lathe(rows, 32))
    count = draw.count(3, 6)
    for k in range(count):
        angle = 2 * math.pi * k / count + draw.between(-0.2, 0.2)
        reach, tall = draw.between(0.16, 0.3), mouth + draw.between(0.32, 0.5)
        x, z = reach * math.sin(angle), reach * math.cos(angle)
        toy.add(
            plain("green"),
            tube(
                [(x * 0.1, mouth - 0.15, z * 0.1), (x * 0.4, mouth + 0.15, z * 0.4), (x, tall, z)],
                0.018,
            ),
        )
        petal = ball(1, 12).scaled(0.055, 0.04, 0.055)
        head = [
            petal.moved(0.075 * math.sin(a), 0.0, 0.075 * math.cos(a))
            for a in [k * 1.0472 for k in range(6)]
        ]
        toy.add(plain(flower), *(p.turned("x", 35).moved(x, tall, z) for p in head))
        core = plain("yellow") if flower != "yellow" else plain("brown")
        toy.add(core, ball(0.05, 12).turned("x", 35).moved(x, tall + 0.02, z + 0.01))
    toy.detail(plural(count, f"{flower} flower"))
    return toy


def bottle(draw: Draw) -> Toy:
    """A bottle with a label and a cap."""
    color = draw.color(among=("green", "blue", "brown", "teal", "purple", "red", "orange"))
    label, cap = (
        draw.color(color, among=("white", "yellow", "pink", "light blue")),
        draw.accent(color),
    )
    toy = Toy("bottle", "household", color)
    radius, body = draw.between(0.22, 0.28), draw.between(0.65, 0.85)
    neck = draw.between(0.2, 0.32)
    curve = [(radius * 0.92, 0), (radius, 0.04), (radius, body), (radius * 0.85, body + 0.1)]
    curve += [
        (radius * 0.45, body + 0.22),
        (radius * 0.34, body + 0.28),
        (radius * 0.34, body + 0.28 + neck),
    ]
    toy.add(plain(color), lathe(curve, 32))
    toy.add(plain(label), lathe([(radius * 1.015, body * 0.25), (radius * 1.015, body * 0.75)], 32))
    toy.add(
        plain(cap), lathe([(radius * 0.42, 0), (radius * 0.42, 0.12)]).moved(y=body + 0.22 + neck)
    )
    toy.detail(f"{with_article(label)} label")
    toy.detail(f"{with_article(cap)} cap")
    return toy


def clock(draw: Draw) -> Toy:
    """An alarm clock with two bells."""
    color = draw.color()
    bells = draw.pick((METAL, GOLDEN, plain(draw.color(color))))
    toy = Toy("alarm clock", "household", color)
    radius = 0.5
    case = lathe([(radius * 0.94, -0.16), (radius, -0.1), (radius, 0.12), (radius * 0.9, 0.17)], 40)
    toy.add(plain(color), case.turned("x", 90).moved(y=0.62))
    toy.add(
        plain("white"),
        cylinder(radius * 0.86, 0.04, segments=40).turned("x", 90).moved(y=0.62, z=0.145),
    )
    for hour in range(12):
        mark = box(0.03, 0.09 if hour % 3 == 0 else 0.05, 0.03).moved(y=radius * 0.68)
        toy.add(plain("black"), mark.turned("z", 30 * hour).moved(y=0.62, z=0.185))
    hour_at, minute_at = draw.count(0, 11), draw.pick((0, 90, 180, 270))
    toy.add(
        plain("black"),
        box(0.04, 0.22, 0.03).turned("z", -30 * hour_at - minute_at / 12).moved(y=0.62, z=0.19),
    )
    toy.add(plain("red"), box(0.028, 0.32, 0.03).turned("z", -minute_at).moved(y=0.62, z=0.2))
    toy.add(plain("black"), cylinder(0.04, 0.06).turned("x", 90).moved(y=0.62, z=0.18))
    for side in (-1, 1):
        bell = dome(0.2).turned("z", -side * 32).moved(side * 0.32, 1.02, 0)
        toy.add(bells, bell, ball(0.045, 10).moved(side * 0.44, 1.21, 0))
        toy.add(METAL, limb((side * 0.26, 0.25, 0), (side * 0.36, 0.03, 0.02), 0.045))
    toy.add(
        METAL,
        limb((0, 1.08, 0), (0, 1.22, 0), 0.025),
        rounded_box(0.14, 0.07, 0.06, 0.02).moved(y=1.2),
    )
    toy.detail(f"two {bells.word} bells")
    return toy


def umbrella(draw: Draw) -> Toy:
    """An open umbrella standing on its handle."""
    color = draw.color()
    other = draw.color(color, among=("white", "yellow", "pink", "light blue"))
    turn = 2 * math.pi
    kind = draw.pick((plain(color), striped(color, other, turn / 8), dotted(color, other, 0.45)))
    toy = Toy("umbrella", "household", kind.word)
    bow = [k * math.pi / 20 for k in range(11)]
    inside = [(0.96 * math.sin(t), 0.58 * math.cos(t) - 0.01) for t in bow]
    outside = [(math.sin(t), 0.62 * math.cos(t)) for t in reversed(bow)]
    canopy = lathe([*inside, *outside], 24)
    toy.add(kind, canopy.moved(y=1.25))
    handle = draw.pick((wooden(1), plain("black")))
    hook = [(x, y, 0) for x, y in arc(0.13, 0, -180, 9, center=(0.13, 0.13))][::-1]
    toy.add(METAL, limb((0, 0.4, 0), (0, 1.98, 0), 0.028))
    toy.add(handle, tube([*[(0.26 - x, y, z) for x, y, z in hook], (0, 0.42, 0)], 0.045))
    toy.detail(f"a {handle.word} handle")
    return toy


def cake(draw: Draw) -> Toy:
    """A tiered cake with candles."""
    color = draw.color(among=("pink", "yellow", "light blue", "purple", "brown", "orange"))
    trim = draw.color(color, among=("white", "red", "pink", "blue"))
    tiers, candles = draw.count(1, 3), draw.count(1, 6)
    toy = Toy("cake", "food", f"{('one', 'two', 'three')[tiers - 1]}-tier {color}")
    toy.add(METAL, lathe([(0.3, 0), (0.12, 0.05), (0.75, 0.12), (0.76, 0.15)], 36))
    y = 0.14
    radius = 0.64
    for _ in range(tiers):
        toy.add(
            plain(color), lathe([(radius, 0), (radius, 0.3), (radius - 0.03, 0.34)], 36).moved(y=y)
        )
        toy.add(
            plain(trim),
            ring(radius, 0.045).moved(y=y + 0.03),
            ring(radius - 0.03, 0.04).moved(y=y + 0.33),
        )
        y += 0.34
        radius -= 0.18
    stand = max(0.12, radius)
    for k in range(candles):
        a = 2 * math.pi * k / candles
        x, z = (stand * math.sin(a), stand * math.cos(a)) if candles > 1 else (0.0, 0.0)
        toy.add(plain("white"), cylinder(0.03, 0.22, segments=10).moved(x, y, z))
        toy.add(plain("yellow"), ball(1, 10).scaled(0.035, 0.065, 0.035).moved(x, y + 0.28, z))
    toy.detail(f"{trim} icing")
    toy.detail(plural(candles, "candle"))
    return toy


def ice_cream(draw: Draw) -> Toy:
    """An ice cream cone with one to three scoops."""
    count = draw.count(1, 3)
    scoops: list[str] = []
    for _ in range(count):
        scoops.append(
            draw.color(
                *scoops,
                among=("pink", "yellow", "light blue", "green", "brown", "purple", "orange"),
            )
        )
    toy = Toy("ice cream cone", "food")
    wafer = Paint("wafer", (0.85, 0.62, 0.34), (0.70, 0.47, 0.23), "checks", 0.16)
    toy.add(wafer, lathe([(0.02, 0), (0.3, 0.85), (0.34, 0.87), (0.34, 0.95)], 28))
    y = 1.05
    for word in scoops:
        toy.add(plain(word), ball(0.32, 24).moved(y=y), ring(0.27, 0.07).moved(y=y - 0.13))
        y += 0.36
    if draw.chance():
        toy.add(plain("red"), ball(0.09, 14).moved(y=y + 0.02))
        extra = ["a cherry on top"]
    else:
        extra = []
    word = listed(scoops)
    toy.details += [f"{with_article(word)} scoop" if count == 1 else f"{word} scoops", *extra]
    return toy


def gift(draw: Draw) -> Toy:
    """A wrapped present with a bow."""
    color = draw.color()
    bow = draw.color(color, among=("white", "yellow", "red", "blue", "pink"))
    kind = draw.pick((plain(color), dotted(color, "white", 0.35), checked(color, "white", 0.35)))
    if bow == "white":
        kind = plain(color)
    toy = Toy("gift box", "toy", kind.word)
    width, height, depth = draw.between(0.7, 1.1), draw.between(0.45, 0.95), draw.between(0.7, 1.0)
    toy.add(
        kind,
        box(width, height, depth),
        rounded_box(width + 0.08, 0.16, depth + 0.08, 0.02).moved(y=height - 0.12),
    )
    band = plain(bow)
    toy.add(band, box(0.14, height + 0.06, depth + 0.11), box(width + 0.11, height + 0.06, 0.14))
    loop = ring(0.13, 0.045, 20).turned("x", 90).scaled(x=1.4)
    toy.add(
        band,
        *(loop.turned("z", side * 25).moved(side * 0.17, height + 0.17, 0) for side in (-1, 1)),
    )
    toy.add(band, ball(0.075, 12).moved(y=height + 0.1))
    toy.detail(f"{with_article(bow)} ribbon")
    return toy


MAKERS = (mug, teapot, clock, vase, cake, umbrella, ice_cream, bottle, gift)
