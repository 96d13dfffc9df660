"""Cars, trucks, trains, ships, aircraft: lengthwise along z, front at +z."""

from __future__ import annotations

import math

from kiss3d_train.data.sources.toybox.build import Draw, Toy, with_article
from kiss3d_train.data.sources.toybox.paint import (
    DARK_METAL,
    GLASS,
    GOLDEN,
    METAL,
    RUBBER,
    Paint,
    plain,
)
from kiss3d_train.data.sources.toybox.solids import (
    Solid,
    arc,
    box,
    cylinder,
    dome,
    lathe,
    limb,
    rounded_box,
    slab,
    tube,
)

CATEGORY = "vehicle"


def wheel(radius: float, width: float) -> tuple[Solid, Solid]:
    """A tyre and its rim, rolling along z, centred on the origin."""
    half, edge = width / 2, radius * 0.12
    tyre = [(radius * 0.6, -half), (radius - edge, -half), (radius, edge - half)]
    tyre += [(radius, half - edge), (radius - edge, half), (radius * 0.6, half)]
    rim = [(radius * 0.62, -half * 1.02), (radius * 0.62, half * 1.02), (radius * 0.2, half * 1.1)]
    return (lathe(tyre).turned("z", 90), lathe([(radius * 0.2, -half * 1.1), *rim]).turned("z", 90))


def add_wheels(
    toy: Toy, rim: Paint, radius: float, width: float, track: float, at: tuple[float, ...]
) -> None:
    """A pair of wheels at every z of `at`, `track` apart."""
    tyre, hub = wheel(radius, width)
    for z in at:
        for side in (-1, 1):
            toy.add(RUBBER, tyre.moved(side * track / 2, radius, z))
            toy.add(rim, hub.moved(side * track / 2, radius, z))


def side_profile(outline: list[tuple[float, float]], width: float) -> Solid:
    """Extrude an outline of (z, y) points across x."""
    return slab([(-z, y) for z, y in outline], width).turned("y", 90)


def car(draw: Draw) -> Toy:
    """A saloon, a hatchback or a pickup-like open car."""
    color = draw.color()
    body, rim = plain(color), draw.pick((METAL, METAL, plain("white"), GOLDEN))
    toy = Toy("car", CATEGORY, color)
    length, width, radius = (
        draw.between(3.4, 4.2),
        draw.between(1.65, 1.8),
        draw.between(0.32, 0.38),
    )
    hood, trunk = draw.between(0.72, 0.85), draw.between(0.75, 0.95)
    z = length / 2
    lower = [(-z, 0.35), (-z + 0.15, 0.22), (z - 0.15, 0.22), (z, 0.35), (z, hood - 0.15)]
    lower += [(z - 0.12, hood - 0.05), (z * 0.35, hood + 0.05), (-z * 0.62, trunk + 0.02)]
    lower += [(-z + 0.06, trunk - 0.03), (-z, trunk - 0.12)]
    toy.add(body, side_profile(lower, width))
    tail = draw.pick((-z * 0.62, -z * 0.9))
    nose = z * 0.38
    middle, span = (nose + tail) / 2, nose - tail
    base = min(hood, trunk) - 0.02
    cabin = draw.between(0.5, 0.6) + abs(hood - trunk)
    toy.add(GLASS, box(width * 0.94, cabin, span, (0.8, 0.62)).moved(0, base, middle))
    roof = rounded_box(width * 0.79, 0.08, span * 0.66, 0.035)
    toy.add(body, roof.moved(0, base + cabin - 0.03, middle))
    pillar = box(width * 0.955, cabin, 0.12, (0.805, 0.9))
    toy.add(body, pillar.moved(0, base, middle), pillar.moved(0, base, middle - span * 0.3))
    add_wheels(toy, rim, radius, 0.26, width - 0.2, (z * 0.6, -z * 0.6))
    lights = cylinder(0.12, 0.06).turned("x", 90)
    spots = [lights.moved(i * width * 0.34, hood - 0.22, z - 0.02) for i in (-1, 1)]
    toy.add(plain("yellow"), *spots)
    rear = box(0.3, 0.12, 0.06)
    toy.add(
        plain("red") if color != "red" else plain("orange"),
        *(rear.moved(i * width * 0.34, trunk - 0.28, -z) for i in (-1, 1)),
    )
    toy.add(
        DARK_METAL, *(rounded_box(width, 0.13, 0.16, 0.05).moved(0, 0.3, i * z) for i in (-1, 1))
    )
    toy.add(
        DARK_METAL,
        *(box(0.14, 0.14, 0.2).moved(i * width * 0.53, base + 0.08, nose - 0.15) for i in (-1, 1)),
    )
    if draw.chance(0.35):
        stripe = draw.color(color, among=("white", "black", "yellow", "blue"))
        toy.add(plain(stripe), box(0.36, 0.03, span * 0.6).moved(0, base + cabin + 0.035, middle))
        toy.detail(f"a {stripe} stripe on the roof")
    toy.detail(f"{rim.word} wheels")
    return toy


def truck(draw: Draw) -> Toy:
    """A lorry with a box, a dump bed or a tank."""
    color = draw.color()
    load_color = draw.accent(color, "black")
    kind = draw.pick(("box", "dump", "tanker"))
    toy = Toy(
        {"box": "box truck", "dump": "dump truck", "tanker": "tanker truck"}[kind], CATEGORY, color
    )
    body, load = plain(color), plain(load_color)
    width, bed = 1.7, draw.between(2.6, 3.4)
    toy.add(DARK_METAL, box(1.0, 0.2, bed + 1.5).moved(y=0.45, z=0.6))
    front = bed / 2 + 0.75
    toy.add(body, rounded_box(width, 1.45, 1.2, 0.1).moved(y=0.5, z=front))
    toy.add(GLASS, box(width * 0.86, 0.55, 0.1).moved(y=1.25, z=front + 0.57))
    toy.add(GLASS, box(width * 1.01, 0.48, 0.6).moved(y=1.28, z=front + 0.1))
    toy.add(METAL, box(width * 0.6, 0.32, 0.08).moved(y=0.75, z=front + 0.58))
    toy.add(
        plain("yellow"),
        *(box(0.22, 0.16, 0.08).moved(i * 0.66, 0.82, front + 0.58) for i in (-1, 1)),
    )
    toy.add(DARK_METAL, rounded_box(width + 0.04, 0.2, 0.2, 0.06).moved(y=0.42, z=front + 0.58))
    if kind == "box":
        toy.add(load, rounded_box(width + 0.1, 1.75, bed, 0.05).moved(y=0.66))
    elif kind == "dump":
        sides = [box(width + 0.1, 0.1, bed).moved(y=0.68)]
        sides += [box(0.08, 0.75, bed).moved(x=i * (width + 0.05) / 2, y=0.7) for i in (-1, 1)]
        sides += [
            box(width + 0.1, height, 0.08).moved(y=0.7, z=z)
            for z, height in ((-bed / 2, 0.75), (bed / 2, 1.0))
        ]
        toy.add(load, *sides)
        heap = dome(1, 16).scaled(width * 0.46, 0.45, bed * 0.46).moved(y=1.15)
        toy.add(plain("brown"), heap, box(width, 0.5, bed - 0.1).moved(y=0.7))
    else:
        tank = lathe(
            [(0.55, -bed / 2), (0.82, 0.15 - bed / 2), (0.82, bed / 2 - 0.15), (0.55, bed / 2)]
        )
        toy.add(load, tank.turned("x", 90).moved(y=1.45))
        toy.add(METAL, cylinder(0.3, 0.14).moved(y=2.2))
        toy.add(
            DARK_METAL, *(box(1.2, 0.3, 0.2).moved(y=0.55, z=z) for z in (-bed * 0.3, bed * 0.3))
        )
    add_wheels(toy, METAL, 0.42, 0.34, width - 0.25, (front, -bed * 0.12, -bed * 0.41))
    part = {"box": "box", "dump": "bed full of earth", "tanker": "tank"}[kind]
    toy.detail(f"{with_article(load_color)} {part}")
    return toy


def bus(draw: Draw) -> Toy:
    """A city bus, with one or two decks."""
    color = draw.color()
    double = draw.chance(0.4)
    toy = Toy("double-decker bus" if double else "bus", CATEGORY, color)
    length, width = draw.between(4.6, 5.6), 1.75
    deck = 1.05
    height = 0.75 + deck * (2 if double else 1) + 0.2
    toy.add(plain(color), rounded_box(width, height, length, 0.14).moved(y=0.3))
    stripe = draw.color(color, among=("white", "yellow", "blue", "black"))
    toy.add(plain(stripe), box(width * 1.012, 0.14, length * 1.004).moved(y=0.78))
    panes = 5
    for level in range(2 if double else 1):
        y = 1.02 + level * deck
        for k in range(panes):
            z = (k - (panes - 1) / 2) * (length * 0.92 / panes)
            toy.add(GLASS, box(width * 1.016, 0.56, length * 0.75 / panes).moved(0, y, z))
        toy.add(GLASS, box(width * 0.82, 0.66, 0.1).moved(y=y - 0.04, z=length / 2 - 0.03))
        toy.add(GLASS, box(width * 0.7, 0.5, 0.1).moved(y=y, z=0.03 - length / 2))
    toy.add(
        plain("yellow"), *(box(0.24, 0.14, 0.06).moved(i * 0.6, 0.52, length / 2) for i in (-1, 1))
    )
    add_wheels(toy, METAL, 0.38, 0.28, width - 0.2, (length * 0.32, -length * 0.3))
    toy.detail(f"a {stripe} stripe")
    return toy


def locomotive(draw: Draw) -> Toy:
    """A steam locomotive."""
    color = draw.color()
    trim = draw.accent(color, "black")
    toy = Toy("steam locomotive", CATEGORY, color)
    body, detail = plain(color), plain(trim)
    length = draw.between(2.9, 3.4)
    front = length / 2
    toy.add(DARK_METAL, box(1.0, 0.16, length).moved(y=0.5))
    boiler = lathe([(0.46, 0), (0.5, 0.05), (0.5, length * 0.62), (0.42, length * 0.66)])
    toy.add(body, boiler.turned("x", 90).moved(y=1.12, z=front - length * 0.66))
    toy.add(DARK_METAL, cylinder(0.36, 0.08).turned("x", 90).moved(y=1.12, z=front - 0.02))
    for f in (0.3, 0.52):
        band = lathe([(0.52, 0), (0.52, 0.07)]).turned("x", 90)
        toy.add(detail, band.moved(y=1.12, z=front - length * 0.66 + length * f))
    chimney = [(0.13, 0), (0.13, 0.4), (0.24, 0.62), (0.2, 0.66)]
    toy.add(DARK_METAL, lathe(chimney).moved(y=1.52, z=front - 0.4))
    toy.add(
        GOLDEN,
        dome(0.2).moved(y=1.58, z=front - 1.1),
        cylinder(0.2, 0.12).moved(y=1.5, z=front - 1.1),
    )
    back = -front + length * 0.17
    toy.add(body, box(1.1, 1.3, length * 0.32).moved(y=0.62, z=back))
    toy.add(GLASS, box(1.12, 0.42, length * 0.16).moved(y=1.32, z=back))
    toy.add(
        GLASS, *(box(0.26, 0.34, 0.06).moved(i * 0.36, 1.45, back + length * 0.16) for i in (-1, 1))
    )
    toy.add(detail, rounded_box(1.3, 0.12, length * 0.4, 0.05).moved(y=1.9, z=back))
    catcher = slab([(-0.5, 0), (0.5, 0), (0.5, 0.3), (-0.5, 0.3)], 0.3)
    toy.add(detail, catcher.turned("x", 30).moved(y=0.2, z=front))
    add_wheels(toy, detail, 0.34, 0.14, 0.96, (back, back + 0.75, back + 1.5))
    add_wheels(toy, detail, 0.22, 0.14, 0.96, (front - 0.3,))
    rod = rounded_box(0.06, 0.09, 1.6, 0.02)
    toy.add(METAL, *(rod.moved(i * 0.58, 0.3, back + 0.75) for i in (-1, 1)))
    toy.detail(f"{with_article(trim)} roof")
    toy.detail(f"{trim} wheels")
    return toy


def tractor(draw: Draw) -> Toy:
    """A farm tractor with large rear wheels."""
    color = draw.color()
    rim = draw.color(color, among=("yellow", "white", "red", "orange"))
    toy = Toy("tractor", CATEGORY, color)
    body = plain(color)
    toy.add(body, rounded_box(0.8, 0.65, 1.6, 0.1).moved(y=0.75, z=0.75))
    toy.add(
        DARK_METAL,
        box(0.6, 0.45, 0.06).moved(y=0.85, z=1.54),
        box(0.5, 0.3, 2.4).moved(y=0.5, z=0.2),
    )
    toy.add(
        plain("yellow"),
        *(cylinder(0.09, 0.05).turned("x", 90).moved(i * 0.3, 1.22, 1.5) for i in (-1, 1)),
    )
    toy.add(body, box(1.0, 0.35, 1.1).moved(y=0.75, z=-0.55))
    cab = draw.chance(0.7)
    if cab:
        toy.add(GLASS, box(0.98, 0.85, 0.95, (0.9, 0.85)).moved(y=1.08, z=-0.5))
        toy.add(body, rounded_box(1.1, 0.12, 1.1, 0.05).moved(y=1.9, z=-0.5))
        toy.add(
            body,
            *(
                limb((i * 0.47, 1.1, z), (i * 0.43, 1.92, -0.5 + (z + 0.5) * 0.86), 0.045)
                for i in (-1, 1)
                for z in (-0.95, -0.05)
            ),
        )
    else:
        toy.add(plain("black"), rounded_box(0.5, 0.12, 0.45, 0.05).moved(y=1.1, z=-0.55))
        toy.add(plain("black"), rounded_box(0.5, 0.5, 0.12, 0.05).moved(y=1.15, z=-0.78))
        wheel_ring = [
            (0.2 * math.cos(a), 0.2 * math.sin(a), 0) for a in [k * 0.5236 for k in range(12)]
        ]
        steering = tube(wheel_ring, 0.03, closed=True).turned("x", -35)
        toy.add(
            plain("black"), steering.moved(y=1.5, z=0.0), limb((0, 1.3, 0.15), (0, 1.5, 0.0), 0.03)
        )
    toy.add(DARK_METAL, limb((0.25, 1.35, 1.1), (0.25, 2.0, 1.1), 0.055))
    for side in (-1, 1):
        fender = [(z, y) for z, y in arc(0.82, 25, 155, 10)] + [
            (z, y) for z, y in arc(0.7, 155, 25, 10)
        ]
        toy.add(body, side_profile(fender, 0.34).moved(side * 0.72, 0.66, -0.75))
    add_wheels(toy, plain(rim), 0.66, 0.36, 1.44, (-0.75,))
    add_wheels(toy, plain(rim), 0.36, 0.24, 1.1, (1.1,))
    toy.detail(f"{rim} wheels")
    toy.detail("a cab" if cab else "an open seat")
    return toy


MAKERS = (car, truck, bus, locomotive, tractor)
