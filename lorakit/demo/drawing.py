"""Draws a `Figure` as a 128 px image: background, then hair, body, face and accessories from back to front."""

import math
import random

import numpy as np
from PIL import Image

from lorakit.demo import clothes, scenery
from lorakit.demo.pen import INK, SUPERSAMPLE, Pen, mix, oval, shadow, spline, star

SIZE = 128
FRAMES = {"portrait": (65, 40), "upper body": (53, 34), "full body": (41, 27.5)}
HAIR = {
    "black": (62, 58, 80),
    "brown": (142, 88, 58),
    "blonde": (250, 216, 112),
    "red": (212, 54, 54),
    "blue": (70, 118, 226),
    "green": (84, 176, 92),
    "pink": (250, 154, 196),
    "white": (232, 234, 244),
    "teal": (56, 200, 190),
    "orange": (250, 146, 58),
}
EYES = {
    "blue": (46, 116, 240),
    "green": (40, 176, 72),
    "red": (226, 40, 52),
    "yellow": (246, 186, 24),
    "purple": (150, 66, 220),
}
SKIN, SKIN_SHADE = (255, 230, 212), (246, 196, 178)
FOX, CREAM, SCARF, STAR = (246, 140, 56), (255, 244, 226), (226, 48, 62), (126, 64, 226)


def draw(figure):
    """The image of `figure`: RGB, 128 x 128 pixels, the same for equal figures."""
    rng = random.Random(figure.seed)
    canvas = scenery.background_image(figure.background, SIZE * SUPERSAMPLE, rng)
    y, unit = FRAMES[figure.framing]
    pen = Pen(
        canvas,
        (SIZE / 2 + figure.dx) * SUPERSAMPLE,
        (y + figure.dy) * SUPERSAMPLE,
        unit * figure.zoom * SUPERSAMPLE,
        figure.tilt,
    )
    color = HAIR[figure.hair_color]
    _back_hair(pen, figure, color)
    clothes.body(pen, figure, SKIN, SKIN_SHADE)
    if "striped scarf" in figure.marks:
        _scarf(pen)
    _face(pen, figure)
    _front_hair(pen, color)
    _crown(pen, figure, color)
    _accessory(pen, figure.accessory)
    if figure.pose:
        clothes.raised_arms(pen, figure, SKIN)
    return canvas.resize((SIZE, SIZE), Image.LANCZOS)


def _mirror(points):
    return [(-p[0], *p[1:]) for p in points]


def _both(points):
    yield points
    yield _mirror(points)


def _back_hair(pen, figure, color):
    dark = shadow(color)
    style = figure.hair_style
    if style in ("long hair", "ponytail"):
        locks = [
            (-0.9, -0.5),
            (-1.1, 0.2),
            (-1.22, 1.0),
            (-1.25, 1.75, 1),
            (-0.9, 1.6),
            (-0.6, 1.8, 1),
            (0, 1.6),
            (0.6, 1.8, 1),
            (0.9, 1.6),
            (1.25, 1.75, 1),
            (1.22, 1.0),
            (1.1, 0.2),
            (0.9, -0.5),
        ]
        if style == "ponytail":
            locks = [
                (0.5, -0.95),
                (1.0, -1.15),
                (1.5, -0.75),
                (1.62, 0.1),
                (1.5, 0.85),
                (1.25, 1.35, 1),
                (1.2, 0.8),
                (1.0, 0.1),
            ]
        strand = spline([(1.5, -0.7), (1.62, 0.1), (1.5, 0.85), (1.25, 1.35), (1.32, 0.5)])
        pen.shape(
            spline(locks),
            color if style == "ponytail" else mix(color, dark, 0.6),
            [(strand, dark)] if style == "ponytail" else (),
        )
    if style in ("twintails", "striped tails"):
        for side in (-1, 1):
            _tail(pen, side, color, HAIR[figure.stripe] if style == "striped tails" else None)
    skull = [(-1.0, -0.3), (-1.02, 0.3), (-0.9, 0.8), (0, 0.95), (0.9, 0.8), (1.02, 0.3), (1.0, -0.3), (0, -1.0)]
    pen.shape(spline(skull), mix(color, dark, 0.75))


def _tail(pen, side, color, stripe):
    outer = [(0.85, -0.55), (1.3, -0.62), (1.66, 0.0), (1.72, 0.8), (1.45, 1.5, 1), (1.2, 0.95), (1.08, 0.3)]
    shade = [(1.0, 0.4), (1.3, 0.5), (1.5, 0.9), (1.45, 1.6), (0.9, 1.6)]
    if stripe:
        outer = [(0.85, -0.5), (1.3, -0.6), (1.74, 0.0), (1.8, 0.8), (1.4, 1.55, 1), (1.02, 0.95), (0.98, 0.3)]
    points = [(side * p[0], *p[1:]) for p in outer]
    shades = [([(side * x, y) for x, y in shade], shadow(color))]
    if stripe:
        shades = [
            ([(side * 0.7, y), (side * 2, y - 0.12), (side * 2, y + 0.2), (side * 0.7, y + 0.32)], stripe)
            for y in (-0.12, 0.5, 1.1)
        ]
    pen.shape(spline(points), color, shades, edge=0.04)
    pen.shape(oval(side * 1.0, -0.5, 0.16, 0.16), (240, 72, 96) if not stripe else CREAM)


def _scarf(pen):
    wrap = [(-0.72, 0.72), (-0.8, 0.98), (-0.5, 1.2), (0, 1.26), (0.5, 1.2), (0.8, 0.98), (0.72, 0.72), (0, 0.9)]
    tail = [(0.22, 1.1), (0.62, 1.05), (0.78, 1.9, 1), (0.36, 1.98, 1)]
    bands = [([(0, y), (1, y - 0.06), (1, y + 0.13), (0, y + 0.19)], CREAM) for y in (1.28, 1.62)]
    pen.shape(spline(tail), SCARF, bands, edge=0.04)
    bars = [
        ([(x - 0.09, 0.6), (x + 0.09, 0.6), (x * 0.9 + 0.09, 1.4), (x * 0.9 - 0.09, 1.4)], CREAM)
        for x in (-0.58, -0.2, 0.18, 0.56)
    ]
    pen.shape(spline(wrap), SCARF, bars, edge=0.04)


def _face(pen, figure):
    face = spline(
        [
            (-0.88, -0.1),
            (-0.85, 0.32),
            (-0.6, 0.68),
            (-0.18, 0.86),
            (0.18, 0.86),
            (0.6, 0.68),
            (0.85, 0.32),
            (0.88, -0.1),
            (0.7, -0.75),
            (0, -0.95),
            (-0.7, -0.75),
        ]
    )
    fringe = spline(
        [(-1, -1), (1, -1), (1, 0.05), (0.7, 0.22), (0.35, 0.02), (0, 0.1), (-0.35, 0.04), (-0.7, 0.22), (-1, 0.05)]
    )
    pen.shape(face, SKIN, [(fringe, SKIN_SHADE)])
    for x in (-0.6, 0.6):
        pen.shape(oval(x, 0.52, 0.15, 0.08), (255, 180, 170), edge=0)
    if "star mark" in figure.marks:
        pen.shape(star(0.6, 0.52, 0.28), STAR, edge=0.03)
    for side in (-1, 1):
        _eye(pen, side, figure)
    _mouth(pen, figure.expression)


def _eye(pen, side, figure):
    x, y = side * 0.42, 0.18
    if figure.expression == "closed eyes":
        pen.line(
            spline([(x - 0.22, y + 0.1), (x - 0.1, y - 0.04), (x + 0.1, y - 0.04), (x + 0.22, y + 0.1)], closed=False),
            INK,
            0.075,
        )
        return
    color = EYES[figure.eye_color]
    pen.shape(oval(x, y, 0.235, 0.29), (255, 255, 255), edge=0)
    glow = oval(x, y + 0.2, 0.17, 0.15)
    pen.shape(
        oval(x, y + 0.01, 0.195, 0.275),
        color,
        [(oval(x, y - 0.2, 0.3, 0.2), mix(color, INK, 0.55)), (glow, mix(color, (255, 255, 255), 0.45))],
        edge=0.03,
        rim=mix(color, INK, 0.7),
    )
    pen.shape(oval(x, y + 0.0, 0.075, 0.11), mix(color, INK, 0.85), edge=0)
    pen.shape(oval(x - 0.07, y - 0.12, 0.075, 0.085), (255, 255, 255), edge=0)
    pen.shape(oval(x + 0.08, y + 0.13, 0.035, 0.04), (255, 255, 255), edge=0)
    lash = [
        (x - side * 0.22, y - 0.16),
        (x - side * 0.1, y - 0.29),
        (x + side * 0.1, y - 0.29),
        (x + side * 0.26, y - 0.1),
    ]
    pen.line(spline(lash, closed=False), INK, 0.075)
    if figure.expression == "angry":
        pen.line([(x - side * 0.22, y - 0.22), (x + side * 0.24, y - 0.42)], INK, 0.09)
    if figure.expression == "crying":
        pen.line([(x - side * 0.2, y - 0.42), (x + side * 0.16, y - 0.34)], INK, 0.04)
        tear = spline(
            [(x - 0.1, y + 0.28), (x - 0.13, y + 0.6), (x, y + 0.7), (x + 0.13, y + 0.6), (x + 0.1, y + 0.28)]
        )
        pen.shape(tear, (120, 204, 255), edge=0.025, rim=(60, 140, 220))


def _mouth(pen, expression):
    if expression == "open mouth":
        mouth = spline([(-0.2, 0.5, 1), (0, 0.53), (0.2, 0.5, 1), (0.13, 0.72), (-0.13, 0.72)])
        pen.shape(mouth, (196, 48, 64), [(oval(0, 0.76, 0.13, 0.1), (255, 140, 140))], edge=0.03)
    elif expression in ("angry", "crying"):
        width = 0.16 if expression == "angry" else 0.12
        pen.line(
            spline([(-width, 0.65), (-width / 2, 0.58), (width / 2, 0.58), (width, 0.65)], closed=False),
            (120, 40, 50),
            0.05,
        )
    else:
        pen.line(spline([(-0.16, 0.55), (-0.08, 0.63), (0.08, 0.63), (0.16, 0.55)], closed=False), (120, 40, 50), 0.05)


def _front_hair(pen, color):
    dark, light = shadow(color), mix(color, (255, 255, 255), 0.5)
    for lock in _both([(0.8, -0.3), (1.04, 0.0), (1.04, 0.5), (0.86, 0.86, 1), (0.8, 0.5), (0.84, 0.2)]):
        pen.shape(spline(lock), color)
    fringe = [
        (-1.02, 0.2, 1),
        (-1.05, -0.35),
        (-0.72, -0.95),
        (0, -1.16),
        (0.72, -0.95),
        (1.05, -0.35),
        (1.02, 0.2, 1),
        (0.86, -0.1),
        (0.72, 0.12, 1),
        (0.6, -0.2),
        (0.42, -0.42, 1),
        (0.36, -0.18),
        (0.16, -0.02, 1),
        (0.06, -0.26),
        (0.0, -0.46, 1),
        (-0.1, -0.2),
        (-0.34, 0.0, 1),
        (-0.42, -0.22),
        (-0.46, -0.4, 1),
        (-0.58, -0.12),
        (-0.74, 0.12, 1),
        (-0.86, -0.1),
    ]
    roots = [(-0.75, -0.1), (-0.3, -0.22), (0.1, -0.2), (0.5, -0.22), (0.8, -0.1), (0.95, 0.3), (-0.95, 0.3)]
    shine = np.concatenate([oval(0, -0.15, 0.78, 0.62, 205, 330), oval(0, -0.1, 0.7, 0.5, 330, 205)])
    pen.shape(spline(fringe), color, [(roots, mix(color, dark, 0.6)), (shine, light)], edge=0.04)


def _crown(pen, figure, color):
    if figure.hair_style == "hair buns":
        for x in (-0.74, 0.74):
            pen.shape(oval(x, -0.98, 0.36, 0.36), color, [(oval(x, -0.8, 0.4, 0.26), shadow(color))], edge=0.04)
    if figure.hair_style == "ponytail":
        pen.shape(oval(0.72, -0.86, 0.17, 0.17), (240, 72, 96))
    if "fox ears" in figure.marks:
        for side in (-1, 1):
            ear = spline(
                [
                    (side * 0.94, -0.5, 1),
                    (side * 1.06, -1.0),
                    (side * 0.98, -1.58, 1),
                    (side * 0.5, -1.3),
                    (side * 0.22, -0.92, 1),
                ]
            )
            tip = [(side * p, q) for p, q in ((0.3, -1.3), (1.3, -1.22), (1.3, -1.8), (0.3, -1.8))]
            inner = spline([(side * 0.82, -0.7), (side * 0.9, -1.22), (side * 0.46, -0.88)])
            pen.shape(ear, FOX, [(inner, CREAM), (tip, (84, 48, 52))], edge=0.04)


def _accessory(pen, name):
    if name == "glasses":
        for x in (-0.42, 0.42):
            pen.line(oval(x, 0.2, 0.34, 0.32), (40, 40, 48), 0.06)
        pen.line([(-0.09, 0.16), (0.09, 0.16)], (40, 40, 48), 0.06)
    elif name == "hair bow":
        for wing in _both([(0, -1.06), (0.2, -1.3), (0.62, -1.44, 1), (0.66, -0.86, 1), (0.2, -0.92)]):
            pen.shape(spline(wing), (236, 52, 76), [(spline(wing) * [1, 0.4] + [0, -0.5], (176, 30, 70))], edge=0.04)
        pen.shape(oval(0, -1.08, 0.14, 0.15), (236, 52, 76))
    elif name == "witch hat":
        cone = spline([(-0.72, -0.72, 1), (-0.4, -1.3), (0.05, -1.75), (0.5, -1.82, 1), (0.35, -1.5), (0.72, -0.72, 1)])
        pen.shape(
            cone, (96, 62, 150), [([(-1, -0.62), (1, -0.62), (1, -0.96), (-1, -0.96)], (250, 196, 60))], edge=0.04
        )
        pen.shape(
            spline(
                [
                    (-1.35, -0.55),
                    (-0.7, -0.8),
                    (0, -0.86),
                    (0.7, -0.8),
                    (1.35, -0.55),
                    (0.6, -0.52),
                    (0, -0.54),
                    (-0.6, -0.52),
                ]
            ),
            (96, 62, 150),
            edge=0.04,
        )
    elif name == "headphones":
        pen.line(oval(0, -0.1, 1.1, 1.12, 185, 355), (48, 50, 62), 0.14)
        for x in (-1.04, 1.04):
            pen.shape(oval(x, 0.12, 0.2, 0.34), (48, 50, 62), [(oval(x, 0.12, 0.11, 0.22), (90, 220, 240))], edge=0.04)
    elif name == "hair flower":
        for i in range(5):
            a = math.radians(72 * i - 90)
            pen.shape(
                oval(-0.62 + 0.2 * math.cos(a), -0.6 + 0.2 * math.sin(a), 0.18, 0.18),
                (255, 255, 255),
                edge=0.03,
                rim=(200, 130, 170),
            )
        pen.shape(oval(-0.62, -0.6, 0.13, 0.13), (255, 196, 40), edge=0.02)
