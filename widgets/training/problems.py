"""What is wrong with the settings in a form, each problem at the field that it is about."""

from __future__ import annotations

import json
import math
import re

from lorakit.config import ConfigError
from lorakit.run.advice import setting_warnings
from lorakit.run.resume import recorded_config, training_settings
from widgets.fields import value_text
from widgets.i18n import say
from widgets.project.draft import Draft, flattened, supported_settings
from widgets.project.labels import labelled


def problems_of(draft: Draft) -> dict[str, str]:
    """Path -> what is wrong there; "" -> what is wrong but at no single field."""
    lines_at: dict[str, list[str]] = {}
    places = supported_settings(draft.choice.family)
    try:
        draft.value  # noqa: B018 - raises what is wrong
    except ConfigError as error:
        for line in str(error).splitlines():
            # A line begins with `part.name`, or with a setting of the run itself, if it is about one.
            start = re.match(r"\w+(\.\w+)?", line)
            names = (start[0], start[0].partition(".")[0]) if start else ()
            # The more exact name first; "" shows the line at the top of the form.
            lines_at.setdefault(next((name for name in names if name in places), ""), []).append(line)
    return {path: "\n".join(lines) for path, lines in lines_at.items()} | changes_since_start(draft)


def warnings_of(draft: Draft, images: int) -> dict[str, str]:
    """Path -> what is allowed there but most likely wastes the run, {} while something is wrong.

    images      of an epoch, with repeats, from which the length of the run follows; 0: unknown
    """
    try:
        config = draft.value
    except ConfigError:
        return {}
    loops = [stage.loop for stage in config.stage_configs]
    # Buckets can make a few more steps of it.
    steps = [math.ceil(images / (loop.batch_size * loop.gradient_accumulation_steps)) for loop in loops]
    lines_at: dict[str, list[str]] = {}
    for line in setting_warnings(config, steps if images else ()):
        lines_at.setdefault(line.partition(" ")[0], []).append(line)
    return {path: "\n".join(lines) for path, lines in lines_at.items()}


def changes_since_start(draft: Draft) -> dict[str, str]:
    """Path -> a sentence for each setting that affects the result and is no longer what the run was started with."""
    config = recorded_config(draft.run)
    # None before the first step: nothing is fixed yet.
    started_with = flattened(training_settings(config)) if config else {}
    # Through JSON, as the record has lists where the form has tuples.
    now = json.loads(json.dumps(draft.shown))
    return {
        path: say(
            "This run was started with “{old}”. Change it back, or choose another run name.", old=value_text(value)
        )
        for path, value in started_with.items()
        # how the run reads its dataset is its own, and no field of the form
        if path in now and now[path] != value and path != "data.reading"
    }


def is_missing(path: str, problem: str) -> bool:
    """Whether the problem is that a setting without a default was not chosen yet."""
    return problem.startswith(f"{path} is missing")


def worded(path: str, problem: str, family: str) -> str:
    """A problem as the form shows it: settings are called by their labels."""
    name = path.rpartition(".")[2]
    # a value that is wrong by itself is refused under its bare name
    full = f"{path}{problem[len(name) :]}" if name and problem.startswith(f"{name} ") else problem
    return labelled(full, family)
