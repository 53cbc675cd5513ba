"""A pen that draws smooth, outlined, two-tone shapes in figure coordinates on a large canvas."""

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SUPERSAMPLE = 4
INK = (44, 34, 56)


def mix(a, b, share):
    """Colour `share` (0..1) of the way from RGB `a` to RGB `b`."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def shadow(color):
    """The darker, slightly cooler tone of RGB `color` that soft two-tone shading uses."""
    return mix(mix(color, (112, 84, 150), 0.22), (60, 40, 90), 0.10)


def outline(color):
    """A tinted dark line colour for RGB `color`."""
    return mix(shadow(color), INK, 0.72)


def spline(points, closed=True, steps=8):
    """Catmull-Rom curve through `points`; a third item marks a sharp corner. Returns an (n, 2) array."""
    pts = np.array([p[:2] for p in points], dtype=float)
    sharp = [len(p) == 3 for p in points]
    n = len(pts)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for i in range(n if closed else n - 1):
        a, b = pts[i], pts[(i + 1) % n]
        before = a if sharp[i] or (not closed and i == 0) else pts[i - 1]
        after = b if sharp[(i + 1) % n] or (not closed and i == n - 2) else pts[(i + 2) % n]
        pieces.append(
            0.5
            * (
                2 * a
                + (b - before) * t
                + (2 * before - 5 * a + 4 * b - after) * t**2
                + (3 * a - before - 3 * b + after) * t**3
            )
        )
    if not closed:
        pieces.append(pts[-1:])
    return np.concatenate(pieces)


def oval(x, y, rx, ry, start=0.0, end=360.0):
    """Points of an ellipse around (x, y), angles in degrees, 0 to the right and 90 down."""
    a = np.radians(np.linspace(start, end, 40))
    return np.stack([x + rx * np.cos(a), y + ry * np.sin(a)], axis=1)


def star(x, y, r, points=5):
    """Corners of a star of radius `r` around (x, y)."""
    a = np.radians(np.arange(2 * points) * 180 / points - 90)
    radius = np.where(np.arange(2 * points) % 2, 0.45, 1.0) * r
    return np.stack([x + radius * np.cos(a), y + radius * np.sin(a)], axis=1)


class Pen:
    """Draws on `image`; `unit` pixels is one figure unit, (x, y) the origin in pixels, `tilt` degrees clockwise."""

    def __init__(self, image, x, y, unit, tilt):
        self.image, self.unit = image, unit
        self.ink = ImageDraw.Draw(image)
        c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        self.matrix, self.origin = np.array([[c, s], [-s, c]]) * unit, np.array([x, y])

    def pixels(self, points):
        """Figure coordinates (n, 2) as a list of canvas pixels."""
        return [tuple(p) for p in (np.asarray(points, dtype=float) @ self.matrix + self.origin).tolist()]

    def line(self, points, color, width=0.035):
        """An open stroke with round ends; `width` in figure units."""
        pixels, w = self.pixels(points), max(3, round(width * self.unit))
        self.ink.line(pixels, fill=color, width=w, joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            self.ink.ellipse([x - w / 2, y - w / 2, x + w / 2, y + w / 2], fill=color)

    def shape(self, points, color, shades=(), edge=0.035, rim=None):
        """A filled shape with an outline; `shades` are (points, color) pairs kept inside it."""
        pixels = self.pixels(points)
        self.ink.polygon(pixels, fill=color)
        if shades:
            self._shade(pixels, shades)
        if edge:
            self.line(np.concatenate([points, points[:2]]), rim or outline(color), edge)

    def _shade(self, pixels, shades):
        xs, ys = [p[0] for p in pixels], [p[1] for p in pixels]
        box = (
            max(0, int(min(xs)) - 1),
            max(0, int(min(ys)) - 1),
            min(self.image.width, int(max(xs)) + 2),
            min(self.image.height, int(max(ys)) + 2),
        )
        if box[2] <= box[0] or box[3] <= box[1]:
            return
        size = (box[2] - box[0], box[3] - box[1])
        inside = self._mask(pixels, box, size)
        for points, color in shades:
            mask = ImageChops.multiply(inside, self._mask(self.pixels(points), box, size))
            self.image.paste(color, box, mask)

    @staticmethod
    def _mask(pixels, box, size):
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).polygon([(x - box[0], y - box[1]) for x, y in pixels], fill=255)
        return mask
