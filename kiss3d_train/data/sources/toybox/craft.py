"""Aircraft, boats and rockets: lengthwise along z, front at +z."""

from __future__ import annotations

from kiss3d_train.data.sources.toybox.build import Draw, Toy, plural
from kiss3d_train.data.sources.toybox.paint import (
    DARK_METAL,
    GLASS,
    GOLDEN,
    METAL,
    RUBBER,
    checked,
    plain,
    striped,
    wooden,
)
from kiss3d_train.data.sources.toybox.solids import (
    Solid,
    ball,
    cylinder,
    lathe,
    limb,
    rounded_box,
    slab,
    tube,
)
from kiss3d_train.data.sources.toybox.vehicles import side_profile, wheel

CATEGORY = "vehicle"


def airplane(draw: Draw) -> Toy:
    """A propeller plane or an airliner."""
    color = draw.color()
    wing_color = draw.accent(color, "black")
    jet = draw.chance()
    toy = Toy("airplane", CATEGORY, f"{color} {'jet' if jet else 'propeller'}")
    body, wing = plain(color), plain(wing_color)
    radius, length = draw.between(0.36, 0.44), draw.between(3.6, 4.4)
    half = length / 2
    hull = [
        (0.0, -half),
        (radius * 0.22, -half + 0.05),
        (radius * 0.75, -half * 0.45),
        (radius, -half * 0.1),
    ]
    hull += [(radius, half * 0.55), (radius * 0.82, half * 0.8), (radius * 0.5, half * 0.94)]
    toy.add(body, lathe([*hull, (0.0, half)]).turned("x", 90))
    span, chord = draw.between(1.9, 2.4), draw.between(0.65, 0.85)
    sweep = 0.7 if jet else 0.1
    plan = [
        (0, chord / 2),
        (span, chord * 0.2 - sweep),
        (span, -chord * 0.25 - sweep),
        (0, -chord / 2),
    ]
    right = slab(plan, 0.09).turned("x", 90).turned("z", 4).moved(y=-0.12, z=half * 0.15)
    toy.add(wing, right, right.mirrored())
    small = [(0, 0.22), (0.75, -0.05 - sweep * 0.3), (0.75, -0.28 - sweep * 0.3), (0, -0.26)]
    tail = slab(small, 0.06).turned("x", 90).moved(y=0.08, z=-half * 0.84)
    fin = slab([(0, 0), (0.6, 0), (0.12, 0.85), (-0.2, 0.85)], 0.07).turned("y", 90)
    toy.add(wing, tail, tail.mirrored(), fin.moved(y=radius * 0.25, z=-half * 0.66))
    toy.add(
        GLASS,
        ball(1, 16).scaled(radius * 0.72, radius * 0.6, 0.45).moved(y=radius * 0.55, z=half * 0.52),
    )
    toy.add(
        GLASS,
        *(
            ball(0.075, 10).moved(x=i * radius * 0.95, y=0.1, z=z * half)
            for i in (-1, 1)
            for z in (-0.2, -0.05, 0.1, 0.25)
        ),
    )
    if jet:
        pod = lathe([(0.1, -0.42), (0.16, -0.2), (0.19, 0.3), (0.15, 0.3), (0.1, 0.1)]).turned(
            "x", 90
        )
        toy.add(METAL, *(pod.moved(i * span * 0.45, -0.28, half * 0.18) for i in (-1, 1)))
        toy.detail(f"{wing_color} wings")
        toy.detail("two engines")
        return toy
    toy.add(
        METAL, lathe([(0.14, 0), (0.1, 0.14), (0.0, 0.24)]).turned("x", 90).moved(z=half - 0.06)
    )
    blades = rounded_box(1.5, 0.14, 0.04, 0.015).moved(y=-0.07).turned("z", draw.between(0, 90))
    toy.add(DARK_METAL, blades.moved(z=half + 0.05))
    tyre, hub = wheel(0.16, 0.1)
    for x in (-0.45, 0.45):
        toy.add(
            DARK_METAL, limb((x * 0.5, -radius * 0.6, half * 0.3), (x, -0.62, half * 0.3), 0.035)
        )
        toy.add(RUBBER, tyre.moved(x, -0.64, half * 0.3))
        toy.add(METAL, hub.moved(x, -0.64, half * 0.3))
    toy.detail(f"{wing_color} wings")
    toy.detail("two wheels")
    return toy


def helicopter(draw: Draw) -> Toy:
    """A helicopter on skids."""
    color = draw.color()
    second = draw.accent(color, "black", "white")
    toy = Toy("helicopter", CATEGORY, color)
    toy.add(plain(color), ball(1).scaled(0.62, 0.68, 0.95).moved(y=1.0, z=0.3))
    toy.add(GLASS, ball(1).scaled(0.52, 0.5, 0.62).moved(y=1.08, z=0.76))
    boom = lathe([(0.1, -2.2), (0.26, 0)], 14).turned("x", 90).moved(y=1.12, z=-0.2)
    toy.add(plain(color), boom)
    fin = slab([(0, 0), (0.42, 0), (0.1, 0.7), (-0.14, 0.7)], 0.08).turned("y", 90)
    toy.add(plain(second), fin.moved(y=1.12, z=-2.15))
    toy.add(plain(second), rounded_box(0.9, 0.06, 0.28, 0.025).moved(y=1.1, z=-2.0))
    toy.add(DARK_METAL, limb((0, 1.5, 0.1), (0, 1.95, 0.1), 0.08))
    count, turn = draw.pick((2, 3, 4)), draw.between(0, 180)
    blade = rounded_box(1.7, 0.045, 0.18, 0.02).moved(x=0.85, y=1.9)
    toy.add(
        plain(second),
        *(blade.turned("y", turn + 360 * k / count).moved(z=0.1) for k in range(count)),
    )
    rotor = rounded_box(0.05, 0.8, 0.1, 0.02).moved(y=-0.4).turned("x", draw.between(0, 180))
    toy.add(DARK_METAL, rotor.moved(0.13, 1.5, -2.3))
    for x in (-0.5, 0.5):
        toy.add(DARK_METAL, tube([(x, 0.05, -0.6), (x, 0.05, 1.0), (x, 0.18, 1.2)], 0.045))
        toy.add(DARK_METAL, *(limb((x, 0.05, z), (x * 0.6, 0.55, z), 0.04) for z in (-0.1, 0.65)))
    toy.detail(plural(count, f"{second} rotor blade"))
    return toy


def sailboat(draw: Draw) -> Toy:
    """A sailing boat with a main sail and a jib."""
    color = draw.color()
    sail_color = draw.color(color)
    sail = draw.pick((plain("white"), plain(sail_color), striped(sail_color, "white", 0.5)))
    toy = Toy("sailboat", CATEGORY, color)
    length, beam = draw.between(2.3, 2.8), draw.between(0.42, 0.5)
    z = length / 2
    hull = _hull(length, beam, 0.5)
    toy.add(plain(color), hull)
    toy.add(wooden(0), _hull(length * 0.94, beam * 0.88, 0.06).moved(y=0.46))
    toy.add(wooden(1), rounded_box(beam * 0.9, 0.2, length * 0.26, 0.05).moved(y=0.5, z=-0.1))
    mast = draw.between(2.2, 2.7)
    toy.add(wooden(1), limb((0, 0.4, 0.25), (0, mast, 0.25), 0.035))
    toy.add(wooden(1), limb((0, 0.85, 0.25), (0, 0.85, -z * 0.9), 0.028))
    main = side_profile([(0.2, 0.92), (0.2, mast - 0.12), (-z * 0.86, 0.92)], 0.035)
    jib = side_profile([(0.32, 0.75), (z * 0.95, 0.62), (0.32, mast - 0.35)], 0.03)
    toy.add(sail, main, jib)
    flag = slab([(0, 0), (0.3, 0.1), (0, 0.2)], 0.02).turned("y", 90)
    toy.add(plain("red" if color != "red" else "blue"), flag.moved(0, mast - 0.16, 0.25))
    toy.detail(f"{sail.word} sails")
    return toy


def _hull(length: float, beam: float, height: float) -> Solid:
    z = length / 2
    right = [(beam, -z), (beam, z * 0.1), (beam * 0.75, z * 0.5), (beam * 0.32, z * 0.84)]
    plan = [(x, -v) for x, v in right] + [(0.0, -z)] + [(-x, -v) for x, v in reversed(right)]
    solid = slab(plan, height).turned("x", -90).moved(y=height / 2)

    # The keel is narrower and shorter than the deck.
    return solid.bent(lambda p: p * (1.0, 0.0, 0.25) * (-0.35 * (1 - p[:, 1:2] / height)))


def rocket(draw: Draw) -> Toy:
    """A standing rocket with fins."""
    color = draw.color()
    body = draw.pick((plain("white"), plain("grey"), checked("white", color, 0.6)))
    toy = Toy("rocket", CATEGORY, body.word)
    radius, height, fins = draw.between(0.32, 0.42), draw.between(1.5, 2.0), draw.pick((3, 4))
    curve = [(radius * 0.8, 0.3), (radius, 0.6), (radius, 0.3 + height * 0.7)]
    toy.add(body, lathe([*curve, (radius * 0.85, 0.3 + height)]))
    nose = [(radius * 0.87, 0), (radius * 0.7, 0.25), (radius * 0.4, 0.5), (0.0, 0.72)]
    toy.add(plain(color), lathe(nose).moved(y=0.3 + height))
    fin = slab(
        [(radius * 0.8, 0.95), (radius * 0.8, 0.35), (radius * 1.9, 0.0), (radius * 1.9, 0.3)], 0.09
    )
    toy.add(plain(color), *(fin.turned("y", 45 + 360 * k / fins) for k in range(fins)))
    toy.add(DARK_METAL, lathe([(radius * 0.75, 0.08), (radius * 0.45, 0.34)]))
    window = cylinder(0.15, 0.1).turned("x", 90)
    toy.add(GOLDEN, window.moved(y=0.3 + height * 0.68, z=radius * 0.9))
    toy.add(
        GLASS, cylinder(0.11, 0.12).turned("x", 90).moved(y=0.3 + height * 0.68, z=radius * 0.9)
    )
    toy.detail(f"a {color} nose")
    toy.detail(f"{plural(fins, f'{color} fin')}")
    return toy


MAKERS = (airplane, sailboat, rocket, helicopter)
