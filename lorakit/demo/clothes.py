"""The body of a figure below its head: legs, clothes, arms and hands."""

from lorakit.demo.pen import mix, oval, shadow, spline

CLOTH = {
    "red": (222, 58, 64),
    "blue": (62, 104, 216),
    "green": (62, 158, 84),
    "yellow": (250, 206, 66),
    "black": (58, 56, 72),
    "white": (246, 246, 252),
}
LOW = [(0.5, 1.06), (0.66, 1.2), (0.84, 1.62), (0.8, 1.82), (0.62, 1.8), (0.44, 1.4)]
HIGH = [(0.42, 1.14), (0.78, 1.06), (1.16, 0.72), (1.36, 0.4), (1.56, 0.52), (1.3, 1.0), (0.9, 1.36), (0.5, 1.5)]


def body(pen, figure, skin, skin_shade):
    """Draws legs, torso and lowered arms; raised arms come later, in front of the hair."""
    color = CLOTH[figure.outfit_color]
    _legs(pen, figure.outfit, skin, skin_shade)
    if figure.outfit == "hoodie":
        hood = spline([(-0.9, 0.6), (-0.95, 0.95), (-0.5, 1.2), (0.5, 1.2), (0.95, 0.95), (0.9, 0.6)])
        pen.shape(hood, shadow(color), edge=0.04)
    for side in (-1, 1):
        if not _raised(figure.pose, side):
            _arm(pen, figure.outfit, color, skin, LOW, side, (0.73, 1.88))
    pen.shape(spline([(-0.2, 0.7), (0.2, 0.7), (0.22, 1.1), (-0.22, 1.1)]), skin_shade)
    _TORSOS[figure.outfit](pen, color, skin)


def raised_arms(pen, figure, skin):
    """Draws the arms that the pose lifts beside the head."""
    color = CLOTH[figure.outfit_color]
    for side in (-1, 1):
        if _raised(figure.pose, side):
            _arm(pen, figure.outfit, color, skin, HIGH, side, (1.5, 0.36))


def _raised(pose, side):
    return pose == "arms up" or (pose == "waving" and side == 1)


def _arm(pen, outfit, color, skin, points, side, hand):
    sleeve = {"serafuku": (248, 248, 252), "dress": skin}.get(outfit, color)
    pen.shape(oval(side * hand[0], hand[1], 0.17, 0.17), skin)
    pen.shape(spline([(side * x, y) for x, y in points]), sleeve, edge=0.04)


def _legs(pen, outfit, skin, skin_shade):
    for side in (-1, 1):
        leg = [(side * 0.06, 2.0), (side * 0.44, 2.0), (side * 0.38, 2.9), (side * 0.1, 2.9)]
        sock = [(side * 0, 2.45), (side * 0.6, 2.45), (side * 0.6, 3), (side * 0, 3)]
        thigh = [(side * 0, 1.9), (side * 0.6, 1.9), (side * 0.6, 2.16), (side * 0, 2.16)]
        pen.shape(
            spline(leg),
            skin,
            [(thigh, skin_shade), (sock, (250, 250, 255) if outfit in ("dress", "serafuku") else (70, 66, 90))],
        )
        pen.shape(
            spline([(side * 0.04, 2.98), (side * 0.08, 2.8), (side * 0.36, 2.8), (side * 0.52, 2.98)]), (110, 66, 62)
        )


def _fold(color):
    return (spline([(0.16, 1.2), (0.7, 1.1), (1.0, 2.4), (0.3, 2.4), (0.3, 1.8)]), shadow(color))


def _skirt(pen, color):
    points = [(-0.4, 1.62), (0.4, 1.62), (0.66, 2.16, 1), (0.3, 2.24), (0, 2.2), (-0.3, 2.24), (-0.66, 2.16, 1)]
    pen.shape(spline(points), color, [_fold(color)], edge=0.04)


def _dress(pen, color, skin):
    shoulders = spline([(-0.56, 1.1), (-0.2, 0.98), (0.2, 0.98), (0.56, 1.1), (0.5, 1.4), (-0.5, 1.4)])
    pen.shape(shoulders, skin)
    gown = [
        (-0.46, 1.24, 1),
        (-0.2, 1.3),
        (0, 1.24),
        (0.2, 1.3),
        (0.46, 1.24, 1),
        (0.4, 1.6),
        (0.62, 2.0),
        (0.82, 2.3, 1),
        (0.4, 2.4),
        (0, 2.36),
        (-0.4, 2.4),
        (-0.82, 2.3, 1),
        (-0.62, 2.0),
        (-0.4, 1.6),
    ]
    pen.shape(spline(gown), color, [_fold(color)], edge=0.04)
    for side in (-1, 1):
        pen.line([(side * 0.34, 1.26), (side * 0.3, 1.0)], color, 0.1)
    pen.line(spline([(-0.4, 1.62), (0, 1.68), (0.4, 1.62)], closed=False), mix(color, (255, 255, 255), 0.55), 0.09)


def _hoodie(pen, color, skin):
    pen.shape(spline([(-0.42, 1.9), (0.42, 1.9), (0.46, 2.2), (-0.46, 2.2)]), (70, 66, 90), edge=0.04)
    top = [
        (-0.62, 1.12),
        (-0.3, 0.96),
        (0, 1.06),
        (0.3, 0.96),
        (0.62, 1.12),
        (0.56, 1.6),
        (0.58, 2.06),
        (0, 2.1),
        (-0.58, 2.06),
        (-0.56, 1.6),
    ]
    pen.shape(spline(top), color, [_fold(color)], edge=0.04)
    for side in (-1, 1):
        pen.line(
            [(side * 0.16, 1.08), (side * 0.18, 1.46)], (255, 255, 255) if sum(color) < 600 else (120, 120, 140), 0.07
        )
    pen.shape(spline([(-0.34, 1.66), (0.34, 1.66), (0.42, 1.94), (-0.42, 1.94)]), mix(color, shadow(color), 0.5))


def _shirt(pen, color, skin):
    _skirt(pen, (84, 82, 112))
    top = [
        (-0.58, 1.12),
        (-0.24, 0.98),
        (0, 1.16),
        (0.24, 0.98),
        (0.58, 1.12),
        (0.5, 1.5),
        (0.46, 1.78),
        (-0.46, 1.78),
        (-0.5, 1.5),
    ]
    pen.shape(spline(top), color, [_fold(color)], edge=0.04)
    for side in (-1, 1):
        pen.shape([(0, 1.14), (side * 0.22, 0.96), (side * 0.4, 1.1), (side * 0.2, 1.34)], (250, 250, 255))


def _serafuku(pen, color, skin):
    _skirt(pen, color)
    top = [
        (-0.58, 1.12),
        (-0.24, 0.98),
        (0, 1.1),
        (0.24, 0.98),
        (0.58, 1.12),
        (0.48, 1.5),
        (0.46, 1.76),
        (-0.46, 1.76),
        (-0.48, 1.5),
    ]
    pen.shape(spline(top), (250, 250, 255), [_fold((250, 250, 255))], edge=0.04)
    for side in (-1, 1):
        pen.shape([(0, 1.42), (side * 0.16, 0.96), (side * 0.58, 1.04), (side * 0.5, 1.34)], color)
        pen.shape(
            [(0, 1.42), (side * 0.3, 1.32), (side * 0.3, 1.62)],
            (240, 70, 90) if color != CLOTH["red"] else (80, 80, 130),
        )


_TORSOS = {"dress": _dress, "hoodie": _hoodie, "shirt": _shirt, "serafuku": _serafuku}
