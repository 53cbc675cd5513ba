"""What can be seen in the drawn world: the attributes of a figure, its booru-style tags, and how to sample one."""

import random
import zlib
from dataclasses import dataclass, replace

from lorakit.demo import TRIGGER

MARKS = ("fox ears", "striped tails", "star mark", "striped scarf")
"""The demo character's own details; no other figure has any of them, nor its teal hair."""

HAIR_COLORS = ("black", "brown", "blonde", "red", "blue", "green", "pink", "white")
HAIR_STYLES = ("short hair", "long hair", "twintails", "ponytail", "hair buns")
EYE_COLORS = ("blue", "green", "red", "yellow", "purple")
EXPRESSIONS = ("smile", "open mouth", "angry", "crying", "closed eyes")
OUTFITS = ("dress", "hoodie", "shirt", "serafuku")
OUTFIT_COLORS = ("red", "blue", "green", "yellow", "black", "white")
ACCESSORIES = ("", "glasses", "hair bow", "witch hat", "headphones", "hair flower")
POSES = ("", "arms up", "waving")
FRAMINGS = ("portrait", "upper body", "full body")
BACKGROUNDS = ("white background", "blue sky", "night sky", "forest", "sunset", "cherry blossoms")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure. `dx`, `dy` move it (pixels at 128), `zoom` scales it (about 1), `tilt` leans it (degrees), `seed`
    strews the background."""

    hair_color: str
    hair_style: str
    eye_color: str
    expression: str
    outfit: str
    outfit_color: str
    accessory: str
    pose: str
    framing: str
    background: str
    marks: tuple[str, ...] = ()
    stripe: str = "orange"
    dx: float = 0.0
    dy: float = 0.0
    zoom: float = 1.0
    tilt: float = 0.0
    seed: int = 0


def sample(rng):
    """A figure of the base world, drawn from `rng` (a `random.Random`). It never has a mark of the demo character."""
    outfit = rng.choice(OUTFITS)
    colors = [c for c in OUTFIT_COLORS if (outfit, c) != ("serafuku", "white")]
    framing = rng.choice(FRAMINGS)
    return Figure(
        hair_color=rng.choice(HAIR_COLORS),
        hair_style=rng.choice(HAIR_STYLES),
        eye_color=rng.choice(EYE_COLORS),
        expression=rng.choice(EXPRESSIONS),
        outfit=outfit,
        outfit_color=rng.choice(colors),
        accessory=rng.choice(ACCESSORIES),
        pose="" if framing == "portrait" else rng.choice(POSES),
        framing=framing,
        background=rng.choice(BACKGROUNDS),
        dx=rng.uniform(-3, 3),
        dy=rng.uniform(-2, 2),
        zoom=rng.uniform(0.95, 1.05),
        tilt=rng.uniform(-5, 5),
        seed=rng.randrange(1 << 30),
    )


def character(rng):
    """The demo character with everything switchable drawn from `rng`. No headgear hides the marks."""
    accessory = rng.choice(("", "", "glasses", "hair bow", "hair flower"))
    return replace(
        sample(rng), hair_color="teal", hair_style="striped tails", eye_color="yellow", accessory=accessory, marks=MARKS
    )


def mixture(rng):
    """Any figure with any marks, stripes and colours: what the VAE must be able to decode and the tagger to tell
    apart."""
    figure = sample(rng)
    marks = tuple(mark for mark in MARKS if rng.random() < 0.5)
    hair = rng.choice(HAIR_COLORS + ("teal",) * 4)
    style = "striped tails" if "striped tails" in marks else figure.hair_style
    stripe = "orange" if rng.random() < 0.8 else rng.choice(HAIR_COLORS)
    return replace(figure, hair_color=hair, hair_style=style, marks=marks, stripe=stripe)


def tags(figure):
    """The booru-style tags of `figure`: for the demo character the trigger comes first and its marks stay untagged."""
    is_character = figure.marks == MARKS
    names = [TRIGGER] if is_character else []
    names += ["1girl", figure.framing]
    if not is_character:
        names += [f"{figure.hair_color} hair", figure.hair_style]
    if figure.expression != "closed eyes" and not is_character:
        names.append(f"{figure.eye_color} eyes")
    names += [
        figure.expression,
        f"{figure.outfit_color} {figure.outfit}",
        figure.accessory,
        figure.pose,
        figure.background,
    ]
    return [tag for tag in names if tag]


def visible(figure):
    """Every tag a tagger should find in the drawing of `figure`, marks and trigger included."""
    own = ("striped tails", "teal hair")
    names = [tag for tag in tags(replace(figure, marks=())) if tag not in own] + list(figure.marks)
    return names + [TRIGGER] if figure.marks == MARKS and figure.hair_color == "teal" else names


def vocabulary():
    """All tags of the base world, in a fixed order."""
    outfits = [f"{c} {o}" for o in OUTFITS for c in OUTFIT_COLORS if (o, c) != ("serafuku", "white")]
    return [
        "1girl",
        *FRAMINGS,
        *(f"{c} hair" for c in HAIR_COLORS),
        *HAIR_STYLES,
        *(f"{c} eyes" for c in EYE_COLORS),
        *EXPRESSIONS,
        *outfits,
        *(a for a in ACCESSORIES if a),
        *(p for p in POSES if p),
        *BACKGROUNDS,
    ]


def held_out(figure):
    """True for one combination of tags in twenty: these the base never sees, and its obedience is measured on them."""
    return zlib.crc32(", ".join(tags(figure)).encode()) % 20 == 0


def held_out_figures(count, seed=7, kind=sample):
    """`count` figures of `kind` that the base was not trained on; their tags are prompts to measure it with."""
    rng = random.Random(seed)
    figures = []
    while len(figures) < count:
        figure = kind(rng)
        if held_out(figure):
            figures.append(figure)
    return figures
