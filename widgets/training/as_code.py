"""The run that a form describes, as Python and as a command."""

from __future__ import annotations

import json
import shlex
from pprint import pformat
from typing import Any

from widgets.project.draft import Draft, flattened

CODE = """\
import lorakit

settings = {settings}
run = lorakit.create_run({folder!r}, settings, {run!r}{gpu_preset})
for event in lorakit.train(run):
    print(event)

# In a terminal; the same command resumes a stopped run:
# {shell}
"""


def code(draft: Draft) -> str:
    """Python that creates the same run without a form, and the command for a terminal.

    Raises ConfigError when settings are missing or wrong.
    """
    draft.value  # noqa: B018 - raises what is wrong
    flat, gpu_preset = flattened(draft.settings), draft.choice.gpu_preset
    shell = [
        "lorakit",
        "train",
        str(draft.project.folder),
        "--run",
        draft.choice.run,
        *(["--gpu-preset", gpu_preset] if gpu_preset else []),
    ]
    for path, value in flat.items():
        shell += ["--set", f"{path}={_typed(value)}"]
    return CODE.format(
        folder=str(draft.project.folder),
        run=draft.choice.run,
        settings=pformat(draft.settings, sort_dicts=False, width=100),
        gpu_preset=f", gpu_preset={gpu_preset!r}" if gpu_preset else "",
        shell=" ".join(map(_quoted, shell)),
    )


def _typed(value: Any) -> str:
    """A value as it is typed behind `--set name=`, on one line."""
    # JSON is YAML, too, and always one line; a text stands for itself
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _quoted(argument: str) -> str:
    """An argument for a shell; one with line breaks in bash's $'…', as the command is on one line."""
    if not any(mark in argument for mark in "\n\r"):
        return shlex.quote(argument)
    escapes = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r"})
    return f"$'{argument.translate(escapes)}'"
