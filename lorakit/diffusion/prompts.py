"""Prompts as A1111 and ComfyUI read them: weights, escapes, BREAK, and kohya's flags behind a prompt.

Where the two differ, A1111's reading holds, as only it has `[x]` and BREAK: nested weights multiply
(`((a:1.2):1.5)` is 1.8, in ComfyUI 1.2), `[x]` is x at 1 / 1.1 and BREAK begins a new window of tokens (both plain
letters in ComfyUI), `\\\\`, `\\[` and `\\]` are escapes, too, and a lone backslash is dropped. For `(x)`, `(x:1.3)`,
`((x))`, `\\(` and `\\)` both are the same. Sources: modules/prompt_parser.py of AUTOMATIC1111/stable-diffusion-webui,
comfy/sd1_clip.py of ComfyUI, `line_to_prompt_dict` of kohya-ss/sd-scripts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

BRACKET = 1.1  # factor of the weight in (x); [x] divides by it
TOKEN = re.compile(r"\\[()\[\]\\]?|[()\[\]]|:\s*[+-]?[.\d]+\s*\)|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
# kohya's flags -> the sampling setting, and the type of its value.
FLAGS = {
    "n": ("negative_prompt", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "l": ("guidance_scale", float),
    "s": ("steps", int),
    "ss": ("sampler", str),
    "fs": ("shift", float),
}
NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")
# Prompt editing [from:to:when] and [to:when], alternating words [a|b].
EDITED = re.compile(r"(?<!\\)\[([^\[\]:|]*):(?:([^\[\]:|]*):)?\s*\d*\.?\d+\s*\]")
ALTERNATING = re.compile(r"(?<!\\)\[([^\[\]|]*)\|[^\[\]]*\]")
# What stays in the prompt as letters -> why.
LETTERS = {
    re.compile(r"\bAND\b"): "prompts are not combined",
    re.compile(r"\{[^{}]*\|[^{}]*\}"): "nothing is chosen at random",
    re.compile(r"(?<!\w)__[\w/*-]+?__(?!\w)"): "wildcard files are not read",
    re.compile(r"\bembedding:[\w.-]+"): "textual inversion embeddings are not loaded",
    # lines of the generation data that A1111 puts into images
    re.compile(r"^Negative prompt:|^Steps: \d+, Sampler:", re.MULTILINE): "write --n, --s and other flags instead",
}

Segment = tuple[str, float]


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    windows     (text, weight) of its parts, in order; BREAK separates windows
    flags       (sampling setting, value), of kohya's flags behind it
    notes       a sentence for everything that a host understands and that is not done here
    """

    windows: tuple[tuple[Segment, ...], ...]
    flags: tuple[tuple[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def is_plain(self) -> bool:
        """Whether it has neither weights nor BREAK: then it is encoded like a caption."""
        return len(self.windows) == 1 and all(weight == 1 for _, weight in self.windows[0])

    @cached_property
    def text(self) -> str:
        """Its words alone."""
        return " ".join("".join(text for text, _ in window) for window in self.windows)

    @property
    def key(self) -> tuple:
        """What its encoding depends on, for the names of caches: of a plain prompt the text alone."""
        return (self.text,) if self.is_plain else ("prompt", self.windows)


def literal(text: str) -> Prompt:
    """A caption: its brackets are letters."""
    return Prompt((((text, 1.0),),))


def parse(text: str) -> Prompt:
    """A prompt as it is typed into A1111 or a sample file of kohya's scripts. Nothing is an error: see `Prompt.notes`.

    >>> parse("a (hat:1.3) --w 832").windows
    ((('a ', 1.0), ('hat', 1.3)),)
    """
    words, *arguments = re.split(r"\s--(?=[a-zA-Z])", text)
    notes: list[str] = []
    flags = [flag for argument in arguments if (flag := _flag(argument, notes))]
    # a prompt without flags keeps its ends, so that it is encoded as before there were any
    words = _without_unsupported(words.strip() if arguments else words, notes)
    return Prompt(tuple(_windows(words)), tuple(flags), tuple(notes))


def escaped(caption: str) -> str:
    """A caption as it is typed as a prompt: brackets are letters in captions, so each gets a backslash.

    One that is clearly written as a prompt stays as it is: with escapes, a weight in numbers, BREAK, another LoRA or
    kohya's flags.
    """
    is_prompt = re.search(r"\\[()\[\]]|\([^()]*:\s*[\d.]+\s*\)|\bBREAK\b|<lora:|\s--[a-z]{1,2}\s", caption)
    return caption if is_prompt else re.sub(r"[\\()\[\]]", r"\\\g<0>", caption)


# ---- flags and what is not done ------------------------------------------------------------------------------------


def _flag(argument: str, notes: list[str]) -> tuple[str, Any] | None:
    """(setting, value) of what stands behind `--`; None, with a note, when it cannot be understood."""
    name, _, value = argument.strip().partition(" ")
    setting, kind = FLAGS.get(name.lower(), ("", str))
    if not setting:
        names = ", ".join(f"--{flag}" for flag in FLAGS)
        notes.append(f"--{name} is not known and left out; the flags here are {names}.")
        return None
    try:
        number = kind(value.strip())
    except ValueError:
        number = None
    if number is None or (isinstance(number, float) and not math.isfinite(number)):
        notes.append(f"--{name} {value.strip()} is left out: it needs a number.")
        return None
    return setting, number


def _without_unsupported(text: str, notes: list[str]) -> str:
    """The text as far as it can be sampled here; a note for everything that was replaced, or that stays as letters."""
    for network in NETWORK.findall(text):
        notes.append(f"{network} is left out: no other LoRA is loaded for samples.")
    text = NETWORK.sub("", text)
    for pattern in (EDITED, ALTERNATING):
        for match in pattern.finditer(text):
            notes.append(f"{match[0]} is read as “{_lasting(match)}”: a prompt does not change while it is sampled.")
        text = pattern.sub(_lasting, text)
    for pattern, why in LETTERS.items():
        notes += [f"{word} is read as letters: {why}." for word in dict.fromkeys(pattern.findall(text))]
    return text


def _lasting(match: re.Match[str]) -> str:
    """What edited words end with, and alternating ones begin with."""
    if match.re is ALTERNATING:
        return match[1]
    # [from:to:when] has two texts, [to:when] one
    return match[1] if match[2] is None else match[2]


# ---- weights -------------------------------------------------------------------------------------------------------


def _windows(text: str) -> Iterator[tuple[Segment, ...]]:
    """The windows of a prompt, each with its segments; neighbours of equal weight are one segment."""
    window: list[Segment] = []
    for part, weight in _weighted(text):
        if part is None:
            yield tuple(window) or (("", 1.0),)
            window = []
        elif window and window[-1][1] == weight:
            window[-1] = (window[-1][0] + part, weight)
        elif part:
            window.append((part, weight))
    yield tuple(window) or (("", 1.0),)


def _weighted(text: str) -> list[tuple[str | None, float]]:
    """(text, weight) of each piece, (None, 1) for a BREAK; a bracket that is not closed reaches to the end."""
    pieces: list[list] = []
    # where the open brackets begin: round ones and square ones close independently of each other
    open_at: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        for piece in pieces[open_at[kind].pop() :]:
            piece[1] *= factor

    for token in TOKEN.findall(text):
        number = _number(token)
        if token[0] == "\\":
            pieces.append([token[1:], 1.0])
        elif token in open_at:
            open_at[token].append(len(pieces))
        elif open_at["("] and (token == ")" or number is not None):
            close("(", BRACKET if number is None else number)
        elif open_at["["] and token == "]":
            close("[", 1 / BRACKET)
        else:
            first, *others = BREAK.split(token)
            pieces.append([first, 1.0])
            for other in others:
                pieces += [[None, 1.0], [other, 1.0]]
    for kind, factor in (("(", BRACKET), ("[", 1 / BRACKET)):
        while open_at[kind]:
            close(kind, factor)
    return [(piece, weight) for piece, weight in pieces]


def _number(token: str) -> float | None:
    """The weight in `:1.3)`; None for other tokens."""
    if len(token) < 3 or token[0] != ":":
        return None
    try:
        return float(token[1:-1])
    except ValueError:
        return None
