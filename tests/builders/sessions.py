"""Runs of the tiny model, cut short, gone on with, and compared bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny import save_images, settings

from lorakit import events
from lorakit.events import Event, Warned
from lorakit.models import config_class
from lorakit.optimizers import OPTIMIZERS
from lorakit.project import Project, Run
from lorakit.run import checkpoint
from lorakit.run.config import configure
from lorakit.run.create import save_config
from lorakit.training.loop import train

# Everything that draws at random or changes while training; 7 images in 2 shapes, in batches of 2 and steps of 3
# batches, which divide neither: 2 steps an epoch, the second of one batch.
HARD = {
    "data": {
        "flip_aug": True,
        "shuffle_caption": True,
        "keep_tokens": 1,
        "caption_variants": 4,
        "caption_dropout_rate": 0.3,
        "caption_tag_dropout_rate": 0.3,
    },
    "adapter": {"dropout": 0.3},
    "loss": {"weighting": "min_snr", "noise_offset": 0.1},
    "schedule": {"name": "cosine_with_restarts", "cycles": 2, "warmup": 2},
    "loop": {"epochs": 3, "gradient_accumulation_steps": 3},
    "save": {"every_epochs": 0, "every_steps": 2},
}
TEXT = {"optimizer": {"text_encoder_lr": 1e-2, "text_encoder_stop_step": 3}}  # trained, then not, in 6 steps


def merged(*changes: dict) -> dict:
    """Settings by part, the later ones over the earlier ones; of stages, the last list of them."""
    result: dict = {}
    for change in changes:
        for part, values in change.items():
            result[part] = values if part == "stages" else {**result.get(part, {}), **values}
    return result


def rates(name: str) -> dict:
    """Settings of an optimizer that make it move the tiny model; 8-bit states also for its small tensors."""
    if OPTIMIZERS[name].adapts_rate:  # d0: the estimate that it starts from
        return {"optimizer": {"name": name, "learning_rate": 1.0, "text_encoder_lr": 1.0, "args": {"d0": 1e-3}}}
    is_eight_bit = name in {row.eight_bit for row in OPTIMIZERS.values()}
    return {"optimizer": {"name": name, "args": {"min_8bit_size": 16} if is_eight_bit else {}}}


def family_settings(family: str, base: Path) -> tuple[dict, dict]:
    """For any family: HARD without what it refuses, and settings that train all of its text parts for a while."""
    config = config_class(family)
    model = {"model": {"family": family, "source": str(base)}}
    hard = {
        part: {k: v for k, v in values.items() if f"{part}.{k}" not in config.unsupported}
        for part, values in HARD.items()
    }
    slow = {rate: 5e-3 for rate in config.rates.values() if rate != "learning_rate"}
    return merged(hard, model), merged(TEXT, {"optimizer": {"text_encoder_lr": 0.0, **slow}})


def new_run(folder: Path, base: Path, *changes: dict, name: str = "r", **images) -> Run:
    """A run in the project at `folder`, which gets the tiny images if it has none."""
    project = Project(folder)
    if not project.dataset.exists():
        save_images(project.dataset, **images)
    run = project.run(name)
    save_config(run, configure(settings(base, **merged(*changes))))
    return run


def copy_of(run: Run, folder: Path) -> Run:
    """The run in a copy of its whole project."""
    shutil.copytree(run.project.folder, folder)
    return Project(folder).run(run.name)


def until(run: Run, last: Callable[[Event], bool]) -> list[Event]:
    """One session up to the first event for which `last` is true, and not a line of code further."""
    seen = []
    for event in (stream := train(run)):
        seen.append(event)
        if last(event):
            stream.close()
            break
    return seen


def at(kind: type[Event], step: int) -> Callable[[Event], bool]:
    """Stop at this event, e.g. at(Stepped, 3) is before the save of step 3, and at(Saved, 3) after it."""
    return lambda event: isinstance(event, kind) and event.step == step


def warnings(seen: list[Event]) -> list[str]:
    """The texts of warnings, without that of the learning rate: tiny models need a hundred times the usual one."""
    texts = [event.text for event in seen if isinstance(event, Warned)]
    return [text for text in texts if "far above it training diverges" not in text]


def trace(run: Run) -> dict[int, tuple]:
    """Everything of the log that must not depend on how often the run was cut, by step."""
    return {
        step: (done.epoch, done.loss, done.lr, done.grad_norm, done.skipped)
        for step, done in sorted(events.steps(run.log).items())
    }


def tensors(data: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(path, leaf) of nested dicts and lists."""
    if isinstance(data, (dict, list, tuple)):
        for key, item in data.items() if isinstance(data, dict) else enumerate(data):
            yield from tensors(item, f"{path}/{key}")
    else:
        yield path, data


def assert_same_bits(actual: object, expected: object) -> None:
    """Nested data with tensors: the same names, types, shapes and bits."""
    actual, expected = dict(tensors(actual)), dict(tensors(expected))
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, torch.Tensor):
            same = actual[path].dtype == value.dtype and torch.equal(actual[path], value)
        else:
            same = type(actual[path]) is type(value) and actual[path] == value
        assert same, f"{path} differs: {actual[path]} instead of {value}"


def assert_same_end(run: Run, uncut: Run) -> None:
    """The run ended where the uncut one did: trace, adapter, optimizer, scaler and LoRA file, bit for bit."""
    lines, whole = trace(run), trace(uncut)
    assert lines.keys() == whole.keys()
    for step, line in whole.items():
        assert lines[step] == line, f"step {step} of the log is {lines[step]} instead of {line}"
    state, expected = checkpoint.newest(run.states).state, checkpoint.newest(uncut.states).state
    assert state["step"] == max(whole)
    assert_same_bits(state, expected)
    assert run.lora_steps() == uncut.lora_steps()
    for step in uncut.lora_steps():
        assert_same_bits(load_file(run.lora_file(step)), load_file(uncut.lora_file(step)))


def killed(verb: str, **arguments: object) -> dict | list:
    """The output of `killed.py VERB`."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed.py"), verb, json.dumps(arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
