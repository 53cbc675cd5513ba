"""The run that a form describes, as Python and as a command."""

from __future__ import annotations

import json
import shlex
from pprint import pformat
from typing import Any

import yaml

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
        shell += ["--set", f"{path}={_on_one_line(value)}"]
    return CODE.format(
        folder=str(draft.project.folder),
        run=draft.choice.run,
        settings=pformat(draft.settings, sort_dicts=False, width=100),
        gpu_preset=f", gpu_preset={gpu_preset!r}" if gpu_preset else "",
        shell=shlex.join(shell),
    )


def _on_one_line(value: Any) -> str:
    """YAML of a value for `--set`."""
    # YAML ends a bare value with a line "..."; the width keeps lists on one line.
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    text = text.removesuffix("\n...\n").rstrip("\n")
    # JSON is YAML, too, and always one line
    return json.dumps(value, ensure_ascii=False) if "\n" in text else text
