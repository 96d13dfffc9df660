"""Chairs, tables, beds and other furniture."""

from __future__ import annotations

from kiss3d_train.data.sources.toybox.build import Draw, Toy, plural
from kiss3d_train.data.sources.toybox.paint import (
    DARK_METAL,
    METAL,
    Paint,
    dotted,
    plain,
    striped,
)
from kiss3d_train.data.sources.toybox.solids import (
    Solid,
    arc,
    ball,
    box,
    cylinder,
    lathe,
    limb,
    ring,
    rounded_box,
    slab,
    tube,
)

CATEGORY = "furniture"


def four_legs(width: float, depth: float, height: float, thick: float, round_: bool) -> list[Solid]:
    """Legs under the corners of a width x depth top."""
    leg = cylinder(thick * 0.35, height, thick * 0.55, 12) if round_ else box(thick, height, thick)
    x, z = width / 2 - thick * 0.6, depth / 2 - thick * 0.6
    return [leg.moved(i * x, 0, j * z) for i in (-1, 1) for j in (-1, 1)]


def leg_paint(draw: Draw) -> Paint:
    """What legs are made of."""
    return draw.pick((draw.wood(), METAL, plain("black"), plain("white")))


def chair(draw: Draw) -> Toy:
    """A four-legged chair with a solid, slatted or ladder back."""
    color = draw.color()
    toy = Toy("chair", CATEGORY, color)
    seat, legs = plain(color), leg_paint(draw)
    width, depth = draw.between(0.42, 0.5), draw.between(0.42, 0.5)
    seat_at, back = draw.between(0.42, 0.5), draw.between(0.42, 0.62)
    toy.add(legs, *four_legs(width, depth, seat_at, 0.055, draw.chance()))
    toy.add(seat, rounded_box(width, 0.06, depth, 0.025).moved(y=seat_at))
    z, top = -depth / 2 + 0.03, seat_at + 0.05
    style = draw.pick(("solid", "slats", "rungs"))
    if style == "solid":
        panel = rounded_box(width, back, 0.05, 0.022).turned("x", -8)
        toy.add(seat, panel.moved(y=top - 0.01, z=z))
    else:
        posts = [box(0.05, back, 0.045).moved(x=i * (width / 2 - 0.025)) for i in (-1, 1)]
        rails = [box(width, 0.07, 0.045).moved(y=back - 0.06)]
        if style == "slats":
            rails += [box(0.045, back - 0.02, 0.03).moved(x=i * width / 5.2) for i in (-1, 0, 1)]
        else:
            rails += [box(width, 0.06, 0.03).moved(y=back * f) for f in (0.25, 0.52)]
        toy.add(seat, *(part.turned("x", -8).moved(y=top, z=z) for part in posts + rails))
    toy.detail(f"{legs.word} legs")
    toy.detail(
        {"solid": "a solid back", "slats": "a slatted back", "rungs": "a ladder back"}[style]
    )
    return toy


def stool(draw: Draw) -> Toy:
    """A round stool on splayed legs or a central post."""
    color = draw.color()
    toy = Toy("stool", CATEGORY, f"round {color}")
    height, legs = draw.between(0.45, 0.75), leg_paint(draw)
    radius = draw.between(0.17, 0.22)
    cushion = lathe([(radius * 0.92, 0), (radius, 0.025), (radius, 0.06), (radius * 0.85, 0.085)])
    toy.add(plain(color), cushion.moved(y=height))
    if draw.chance(0.6):
        count = draw.pick((3, 4))
        leg = limb((radius * 1.15, 0.02, 0), (radius * 0.6, height, 0), 0.02, 0.024)
        toy.add(legs, *(leg.turned("y", 45 + 360 * k / count) for k in range(count)))
        toy.add(legs, ring(radius * 0.96, 0.014).moved(y=height * 0.33))
        toy.detail(plural(count, f"{legs.word} leg"))
    else:
        base = [(radius * 0.95, 0), (radius * 0.9, 0.03), (0.04, 0.06), (0.028, 0.1)]
        toy.add(legs, lathe([*base, (0.028, height)]))
        toy.detail(f"a {legs.word} post")
    return toy


def cushioned(draw: Draw, name: str, seats: int) -> Toy:
    """A sofa or an armchair with `seats` cushions."""
    color = draw.color()
    pillow_color = draw.color(color)
    toy = Toy(name, CATEGORY, color)
    fabric, feet = plain(color), draw.pick((draw.wood(), DARK_METAL))
    seat_width = draw.between(0.56, 0.66)
    inner, depth, arm = seat_width * seats, draw.between(0.75, 0.85), draw.between(0.14, 0.2)
    width, back = inner + 2 * arm, draw.between(0.38, 0.55)
    low = draw.between(0.05, 0.14)
    toy.add(feet, *four_legs(width - 0.1, depth - 0.1, low, 0.07, True))
    toy.add(fabric, rounded_box(width, 0.2, depth, 0.04).moved(y=low))
    cushion = rounded_box(seat_width - 0.01, 0.16, depth - 0.2, 0.06)
    spots = [(k - (seats - 1) / 2) * seat_width for k in range(seats)]
    toy.add(fabric, *(cushion.moved(x, low + 0.18, 0.1) for x in spots))
    rest = rounded_box(inner, back + 0.2, 0.22, 0.09).turned("x", -7)
    toy.add(fabric, rest.moved(y=low + 0.1, z=-depth / 2 + 0.12))
    side = rounded_box(arm, 0.46, depth, 0.07)
    toy.add(fabric, *(side.moved(x=i * (inner + arm) / 2, y=low) for i in (-1, 1)))
    if draw.chance(0.7):
        pillow = rounded_box(0.36, 0.34, 0.12, 0.059).turned("x", -18)
        sides = (-1, 1) if seats > 1 else (0,)
        paint = draw.pick((plain(pillow_color), dotted(pillow_color, "white", 0.16)))
        spread = inner / 2 - 0.24
        toy.add(paint, *(pillow.moved(i * spread, low + 0.33, -depth / 2 + 0.36) for i in sides))
        word = paint.word
        toy.detail(f"two {word} pillows" if seats > 1 else f"a {word} pillow")
    toy.detail(f"{feet.word} feet")
    return toy


def sofa(draw: Draw) -> Toy:
    """A sofa with two or three seats."""
    seats = draw.pick((2, 3))
    toy = cushioned(draw, "sofa", seats)
    toy.look = f"{'two' if seats == 2 else 'three'}-seat {toy.look}"
    return toy


def armchair(draw: Draw) -> Toy:
    """A cushioned armchair."""
    return cushioned(draw, "armchair", 1)


def table(draw: Draw) -> Toy:
    """A round or rectangular table."""
    top = draw.pick((draw.wood(), draw.wood(), plain(draw.color())))
    legs = leg_paint(draw)
    round_ = draw.chance(0.45)
    toy = Toy("table", CATEGORY, f"{'round' if round_ else 'rectangular'} {top.word}")
    height = draw.between(0.6, 0.78)
    if round_:
        radius = draw.between(0.42, 0.58)
        toy.add(
            top,
            lathe([(radius - 0.01, 0), (radius, 0.02), (radius - 0.01, 0.05)], 36).moved(y=height),
        )
        if draw.chance():
            column = [(0.28, 0), (0.26, 0.04), (0.07, 0.09), (0.05, height * 0.5)]
            toy.add(legs, lathe([*column, (0.06, height * 0.9), (0.16, height)]))
            toy.detail(f"a {legs.word} pedestal")
            return toy
        width = depth = radius * 1.35
    else:
        width, depth = draw.between(1.0, 1.4), draw.between(0.6, 0.8)
        toy.add(top, rounded_box(width, 0.055, depth, 0.015).moved(y=height))
        toy.add(legs, box(width - 0.14, 0.08, depth - 0.14).moved(y=height - 0.08))
    toy.add(legs, *four_legs(width - 0.04, depth - 0.04, height, 0.075, round_))
    toy.detail(f"four {legs.word} legs")
    return toy


def desk(draw: Draw) -> Toy:
    """A desk with a block of drawers under one side."""
    top, front = draw.wood(), draw.color()
    toy = Toy("desk", CATEGORY, top.word)
    width, depth, height = draw.between(1.15, 1.4), draw.between(0.55, 0.65), 0.74
    count = draw.count(2, 4)
    toy.add(top, rounded_box(width, 0.05, depth, 0.012).moved(y=height))
    side = draw.pick((-1, 1))
    block = 0.42
    toy.add(top, box(block, height, depth - 0.06).moved(x=side * (width / 2 - block / 2 - 0.02)))
    toy.add(top, box(0.05, height, depth - 0.06).moved(x=-side * (width / 2 - 0.05)))
    toy.add(top, box(width - 0.1, 0.28, 0.03).moved(y=height - 0.3, z=-depth / 2 + 0.08))
    each = (height - 0.06) / count
    x, z = side * (width / 2 - block / 2 - 0.02), depth / 2 - 0.03
    for k in range(count):
        drawer = rounded_box(block - 0.05, each - 0.03, 0.04, 0.01)
        toy.add(plain(front), drawer.moved(x, 0.05 + k * each, z))
        toy.add(METAL, box(0.14, 0.02, 0.05).moved(x, 0.05 + (k + 0.5) * each, z + 0.02))
    toy.detail(plural(count, f"{front} drawer"))
    return toy


def bookcase(draw: Draw) -> Toy:
    """An open bookcase with rows of books."""
    frame = draw.pick((draw.wood(), draw.wood(), plain(draw.color())))
    toy = Toy("bookcase", CATEGORY, frame.word)
    shelves = draw.count(3, 5)
    width, gap, depth, thick = draw.between(0.7, 0.95), 0.34, 0.28, 0.035
    height = shelves * gap + thick
    toy.add(frame, *(box(thick, height, depth).moved(x=i * width / 2) for i in (-1, 1)))
    toy.add(frame, box(width, height, 0.02).moved(z=-depth / 2 + 0.01))
    toy.add(frame, *(box(width, thick, depth).moved(y=k * gap) for k in range(shelves + 1)))
    for k in range(shelves):
        x = -width / 2 + thick
        fill = draw.between(0.55, 0.95) * (width - 2 * thick) - width / 2
        while x < fill:
            thickness = draw.between(0.03, 0.065)
            book = box(thickness * 0.93, draw.between(0.18, 0.27), draw.between(0.15, 0.2))
            toy.add(plain(draw.accent()), book.moved(x + thickness / 2, k * gap + thick, 0.02))
            x += thickness
    toy.detail(plural(shelves, "shelf").replace("shelfs", "shelves"))
    toy.detail("colourful books")
    return toy


def bed(draw: Draw) -> Toy:
    """A bed with a blanket and pillows; the foot end faces the front."""
    color, frame = draw.color(), draw.pick((draw.wood(), draw.wood(), plain("white")))
    double = draw.chance()
    size = "double" if double else "single"
    toy = Toy("bed", CATEGORY, f"{size} {frame.word}")
    width, length = (1.45 if double else 0.92), 1.95
    head = draw.between(0.75, 1.05)
    toy.add(frame, rounded_box(width + 0.1, 0.22, length, 0.03).moved(y=0.12))
    toy.add(frame, *four_legs(width + 0.08, length, 0.16, 0.09, False))
    toy.add(frame, rounded_box(width + 0.12, head, 0.07, 0.03).moved(z=-length / 2))
    toy.add(frame, rounded_box(width + 0.12, 0.5, 0.06, 0.03).moved(z=length / 2))
    toy.add(plain("white"), rounded_box(width, 0.2, length - 0.1, 0.06).moved(y=0.28))
    kind = draw.pick((plain(color), striped(color, "white", 0.3), dotted(color, "white", 0.3)))
    blanket = rounded_box(width + 0.06, 0.2, length * 0.66, 0.05).moved(y=0.31, z=length * 0.145)
    toy.add(kind, blanket)
    pillow = rounded_box(0.58, 0.14, 0.36, 0.069).moved(y=0.46, z=-length / 2 + 0.3)
    toy.add(plain("white"), *(pillow.moved(x=x) for x in ((-0.35, 0.35) if double else (0.0,))))
    toy.detail(f"a {kind.word} blanket")
    toy.detail("two white pillows" if double else "a white pillow")
    return toy


def lamp(draw: Draw) -> Toy:
    """A standing lamp with a cone or drum shade."""
    color, metal = draw.color(), draw.pick((METAL, DARK_METAL, draw.wood()))
    tall = draw.chance()
    toy = Toy("lamp", CATEGORY, f"{'tall' if tall else 'small'} {color}")
    height = draw.between(1.1, 1.3) if tall else draw.between(0.35, 0.45)
    low, high = draw.between(0.2, 0.26), draw.between(0.1, 0.2)
    if tall:
        toy.add(
            metal, lathe([(0.18, 0), (0.17, 0.025), (0.03, 0.05), (0.018, 0.1), (0.018, height)])
        )
    else:
        bulge = draw.between(0.1, 0.14)
        curve = [(0.11, 0), (0.11, 0.03), (0.05, 0.06), (bulge, 0.16), (bulge * 0.9, 0.22)]
        toy.add(metal, lathe([*curve, (0.03, height * 0.85), (0.02, height)]))
    kind = draw.pick((plain(color), striped(color, "white", 0.15)))
    shade = [(low, 0), (high, 0.3), (high - 0.012, 0.3), (low - 0.012, 0.012)]
    toy.add(kind, lathe(shade, 32).moved(y=height - 0.06))
    toy.add(plain("yellow"), ball(0.055, 12).moved(y=height + 0.04))
    if kind.pattern:
        toy.detail(f"a {kind.word} shade")
    toy.detail(f"a {metal.word} base")
    return toy


def cabinet(draw: Draw) -> Toy:
    """A chest of drawers or a wardrobe with doors."""
    body = draw.pick((draw.wood(), plain(draw.color())))
    front = plain(draw.accent(body.word, "black"))
    drawers = draw.chance()
    toy = Toy("chest of drawers" if drawers else "wardrobe", CATEGORY, body.word)
    width = draw.between(0.75, 1.05)
    height, depth = (draw.between(0.75, 1.0) if drawers else draw.between(1.5, 1.8)), 0.48
    toy.add(body, *four_legs(width, depth, 0.1, 0.07, False))
    toy.add(body, rounded_box(width, height, depth, 0.015).moved(y=0.08))
    toy.add(body, rounded_box(width + 0.05, 0.05, depth + 0.05, 0.015).moved(y=height + 0.07))
    z = depth / 2
    if drawers:
        rows = draw.count(3, 5)
        each = (height - 0.06) / rows
        for k in range(rows):
            y = 0.11 + k * each
            toy.add(front, rounded_box(width - 0.07, each - 0.035, 0.04, 0.012).moved(0, y, z))
            knobs = [
                ball(0.024, 10).moved(i * width * 0.22, y + each / 2 - 0.02, z + 0.04)
                for i in (-1, 1)
            ]
            toy.add(METAL, *knobs)
        toy.detail(plural(rows, f"{front.word} drawer"))
    else:
        door = rounded_box(width / 2 - 0.045, height - 0.08, 0.04, 0.012)
        for i in (-1, 1):
            toy.add(front, door.moved(i * (width / 4 - 0.01), 0.12, z))
            toy.add(METAL, box(0.02, 0.16, 0.04).moved(i * 0.045, height * 0.52, z + 0.02))
        toy.detail(f"two {front.word} doors")
    return toy


def bench(draw: Draw) -> Toy:
    """A park bench: planks on an iron frame."""
    planks, frame = draw.wood(), draw.pick((DARK_METAL, plain(draw.color())))
    toy = Toy("park bench", CATEGORY, planks.word)
    width = draw.between(1.1, 1.5)
    toy.add(planks, *(box(width, 0.03, 0.1).moved(y=0.43, z=0.18 - 0.12 * k) for k in range(4)))
    for k in range(3):
        plank = box(width, 0.1, 0.03).turned("x", -12)
        toy.add(planks, plank.moved(y=0.52 + 0.13 * k, z=-0.25 - 0.028 * k))
    for x in (-width / 2 + 0.12, width / 2 - 0.12):
        bars = [
            limb((x, 0, 0.22), (x, 0.42, 0.2), 0.025),
            limb((x, 0, -0.3), (x, 0.42, -0.2), 0.025),
        ]
        bars += [limb((x, 0.41, 0.22), (x, 0.41, -0.22), 0.025)]
        bars += [limb((x, 0.41, -0.22), (x, 0.92, -0.34), 0.025)]
        curve = arc(0.2, 0, 100, 8, center=(0.02, 0.45))
        rest = [(x, y, z) for z, y in curve] + [(x, 0.62, -0.27)]
        toy.add(frame, *bars, tube(rest, 0.02))
    toy.detail(f"a {frame.word} frame")
    return toy


def step_ladder(draw: Draw) -> Toy:
    """A step ladder: two ladders leaning on each other."""
    color = draw.color()
    toy = Toy("step ladder", CATEGORY, color)
    steps, height = draw.count(3, 5), draw.between(1.0, 1.4)
    low, high, run = 0.26, 0.18, 0.36
    legs = []
    for x in (-1, 1):
        legs.append(limb((x * low, 0, run), (x * high, height, 0.05), 0.025))
        legs.append(limb((x * low, 0, -run), (x * high, height, -0.05), 0.025))
    toy.add(plain(color), *legs)
    for k in range(1, steps + 1):
        f = k / (steps + 1)
        width = 2 * (low + (high - low) * f)
        z = run + (0.05 - run) * f
        toy.add(METAL, box(width, 0.03, 0.12).moved(0, height * f, z))
    toy.add(METAL, rounded_box(2 * high + 0.08, 0.04, 0.22, 0.015).moved(y=height))
    brace = slab([(-run * 0.6, 0), (run * 0.6, 0), (run * 0.6, 0.02), (-run * 0.6, 0.02)], 0.02)
    toy.add(METAL, *(brace.turned("y", 90).moved(x * low * 0.9, height * 0.33, 0) for x in (-1, 1)))
    toy.detail(plural(steps, "metal step"))
    return toy


MAKERS = (
    chair,
    sofa,
    table,
    bookcase,
    bed,
    lamp,
    armchair,
    cabinet,
    stool,
    desk,
    bench,
    step_ladder,
)
