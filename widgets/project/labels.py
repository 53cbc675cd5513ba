"""Messages of lorakit as a screen shows them: translated, and settings called by their labels, not `adapter.rank`."""

from __future__ import annotations

import re
from functools import cache

from widgets.i18n import language, message

# `part.name`, or a bare name with an underscore: other bare names are words of English as well.
# ASCII: in Chinese a name may stand beside a character without a space between.
_NAME = re.compile(r"(?<![\w./\\-])(?:[a-z]+\.[a-z]\w*|[a-z]\w*_\w+)\b(?![/\\]|\.\w)", re.ASCII)


def labelled(text: str, family: str = "") -> str:
    """A message in the reader's language with its settings called by their labels: “Rank” in place of adapter.rank.

    The base model's settings differ by family; without one the label of the first family that has it is taken.
    """

    def label(name: re.Match[str]) -> str:
        label = _labels(language(), family).get(name[0])
        if label is None and name[0].startswith("model."):
            label = _labels_of_models(language()).get(name[0])
        return f"“{label}”" if label else name[0]

    return _NAME.sub(label, message(text))


@cache
def _labels(language: str, family: str) -> dict[str, str]:
    """Path, and bare name, -> label in a language of every setting of a run; of the base model's those of `family`."""
    # Imported here: the live view needs labels only when there is a warning, and no widgets at all.
    from dataclasses import fields

    from lorakit import models
    from lorakit.config import types_of
    from lorakit.lora import variants
    from lorakit.run.config import RunConfig
    from widgets.fields import label_and_help

    # The parts that every family shares come from RunConfig: a family's own file would load torch.
    types = types_of(RunConfig)
    parts = [(f.name, types[f.name]) for f in fields(RunConfig) if "variants" in f.metadata and f.name != "model"]
    parts += [("adapter", variants.config_class(name)) for name in variants.trainable()]
    if family:
        parts.append(("model", models.config_class(family)))
    labels: dict[str, str] = {}
    for part, config_class in parts:
        for f in fields(config_class):
            label = label_and_help(f"{part}.{f.name}", config_class, f.name)[0]
            # kohya's name in brackets stands beside the field alone
            label = re.sub(r"\s*[(（].*", "", label)
            labels[f"{part}.{f.name}"] = label
            # Of two parts with a setting of the same name the first keeps the bare name.
            labels.setdefault(f.name, label)
    return labels


@cache
def _labels_of_models(language: str) -> dict[str, str]:
    from lorakit import models

    labels: dict[str, str] = {}
    for family in models.names():
        # `| labels` keeps the labels of earlier families.
        labels = {path: label for path, label in _labels(language, family).items() if path[:6] == "model."} | labels
    return labels
