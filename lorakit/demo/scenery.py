"""The backgrounds of the drawn world."""

import numpy as np
from PIL import Image, ImageDraw


def background_image(name, size, rng):
    """An RGB canvas of `size` x `size` pixels with background `name`; `rng` strews its details."""
    return _PAINTERS[name](size, rng)


def _gradient(size, top, bottom):
    t = np.linspace(0, 1, size)[:, None, None]
    rows = np.array(top) * (1 - t) + np.array(bottom) * t
    return Image.fromarray(np.broadcast_to(rows, (size, size, 3)).round().astype(np.uint8))


def _disc(ink, x, y, r, color):
    ink.ellipse([x - r, y - r, x + r, y + r], fill=color)


def _white(size, rng):
    return Image.new("RGB", (size, size), (252, 252, 254))


def _day(size, rng):
    canvas = _gradient(size, (74, 160, 240), (176, 224, 255))
    ink = ImageDraw.Draw(canvas)
    for side in (0.1, 0.85):
        x, y = (side + rng.uniform(-0.1, 0.1)) * size, rng.uniform(0.12, 0.7) * size
        for i in range(4):
            _disc(ink, x + (i - 1.5) * size * 0.07, y - (i in (1, 2)) * size * 0.035, size * 0.06, (255, 255, 255))
    return canvas


def _night(size, rng):
    canvas = _gradient(size, (20, 22, 66), (58, 54, 122))
    ink = ImageDraw.Draw(canvas)
    for _ in range(22):
        _disc(ink, rng.random() * size, rng.random() * size, size * rng.uniform(0.006, 0.013), (255, 246, 200))
    x, y = rng.choice((0.14, 0.86)) * size, rng.uniform(0.12, 0.2) * size
    _disc(ink, x, y, size * 0.085, (255, 238, 160))
    _disc(ink, x + size * 0.04, y - size * 0.025, size * 0.07, (26, 27, 74))
    return canvas


def _forest(size, rng):
    canvas = _gradient(size, (190, 232, 170), (120, 190, 110))
    ink = ImageDraw.Draw(canvas)
    for x in (0.08, 0.3, 0.7, 0.93):
        x, y = (x + rng.uniform(-0.05, 0.05)) * size, rng.uniform(0.2, 0.4) * size
        ink.rectangle([x - size * 0.025, y, x + size * 0.025, size], fill=(116, 84, 62))
        for i in range(3):
            r = size * (0.1 + 0.035 * i)
            ink.polygon(
                [(x, y - size * 0.24 + i * size * 0.12), (x - r, y + i * size * 0.13), (x + r, y + i * size * 0.13)],
                fill=(44, 124 - 12 * i, 72),
            )
    ink.rectangle([0, size * 0.86, size, size], fill=(86, 150, 74))
    return canvas


def _sunset(size, rng):
    canvas = _gradient(size, (112, 72, 150), (255, 176, 84))
    ink = ImageDraw.Draw(canvas)
    x = rng.choice((0.16, 0.84)) * size
    _disc(ink, x, size * 0.62, size * 0.13, (255, 240, 170))
    ink.rectangle([0, size * 0.76, size, size], fill=(196, 84, 92))
    for i in range(3):
        ink.rectangle(
            [
                x - size * (0.12 - 0.03 * i),
                size * (0.79 + 0.05 * i),
                x + size * (0.12 - 0.03 * i),
                size * (0.805 + 0.05 * i),
            ],
            fill=(255, 206, 130),
        )
    return canvas


def _blossoms(size, rng):
    canvas = _gradient(size, (255, 236, 244), (252, 206, 224))
    ink = ImageDraw.Draw(canvas)
    for corner in (0, 1):
        for _ in range(9):
            x, y = abs(corner - rng.uniform(0, 0.36)) * size, rng.uniform(0, 0.22) * size
            _disc(
                ink,
                x,
                y,
                size * rng.uniform(0.04, 0.08),
                rng.choice(((250, 150, 186), (255, 182, 208), (240, 130, 170))),
            )
    for _ in range(14):
        x, y = rng.random() * size, rng.uniform(0.25, 1) * size
        ink.ellipse([x, y, x + size * 0.035, y + size * 0.022], fill=(246, 140, 178))
    return canvas


_PAINTERS = {
    "white background": _white,
    "blue sky": _day,
    "night sky": _night,
    "forest": _forest,
    "sunset": _sunset,
    "cherry blossoms": _blossoms,
}
