"""Runs in a terminal: the verbs that train, follow and tell, and a line for everything that happens."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from lorakit import events
from lorakit.project import Project, ProjectError, Run
from lorakit.project.lock import busy, is_alive
from lorakit.training import jobs
from lorakit.training.status import project_status

TOLD = {
    events.Started: "{images} images, step {step} of {steps} ({steps_per_epoch} an epoch), {precision} on {device}",
    events.Progress: "encoding {what}: {done} of {total}",
    events.Saved: "saved step {step}  {lora}  {matched}",
    events.Sampled: "sample {image}",
    events.Warned: "! {text}",
    events.Stopped: "stopped after step {step}: {reason}",
    events.Failed: "failed: {reason}",
    events.Finished: "finished after step {step}: {lora}",
}
EVERY = 10  # of the events that come often one line in so many is written to a file


# ---- which project, which run, which settings ------------------------------------------------------------------------


def project_at(folder: Path) -> Project:
    """The project in a folder that is there."""
    project = Project(folder)
    if not project.folder.is_dir():
        raise ProjectError(f"{project.folder} does not exist; name a project's folder, with its images in dataset/.")
    return project


def with_changes(settings: dict, changes: list[str]) -> dict:
    """Settings with KEY=VALUE written into them."""
    from lorakit.config import ConfigError, assign

    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: write it as key=value, e.g. adapter.rank=32.")
        assign(settings, name, value)
    return settings


def _known(options: argparse.Namespace) -> Run:
    """A run that has a config."""
    from lorakit.run.config import read_config

    run = project_at(options.project).run(options.run)
    if not run.exists():
        read_config(run)  # names the runs there are
    return run


def _configured(options: argparse.Namespace) -> Run:
    """The run that was named, with what was asked for in its config."""
    from lorakit.run.config import configure
    from lorakit.run.create import from_weights, save_config

    run = project_at(options.project).run(options.run)
    if run.exists() and not (options.config or options.set or options.gpu_preset or options.from_weights):
        return run
    if is_alive(run):
        raise busy(run)
    settings = with_changes(_settings(run, options), options.set)
    if options.from_weights:
        from_weights(run, options.from_weights, settings, options.gpu_preset)
    else:
        save_config(run, configure(settings, options.gpu_preset))
    return run


def _settings(run: Run, options: argparse.Namespace) -> dict:
    """The settings that `--set` and `--gpu-preset` change: a file's, the run's own, or those of the weights' run."""
    from lorakit.config import read_yaml
    from lorakit.run.config import settings_of

    if options.config:
        return read_yaml(options.config)
    if run.exists():
        return settings_of(run, options.gpu_preset)
    theirs = Path(options.from_weights or "").absolute().parent.parent / run.config_file.name
    return read_yaml(theirs) if theirs.exists() else {"model": {"family": "sd15"}}


# ---- verbs: each returns the exit status -----------------------------------------------------------------------------


def train(options: argparse.Namespace) -> int:
    """Train in the foreground."""
    from lorakit.training.loop import train

    run = _configured(options)
    jobs.share(run)
    for event in train(run):
        try:
            _show(event)
        except OSError:  # the terminal was closed, or nobody reads: what happens stands in the log
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return 0


def start(options: argparse.Namespace) -> int:
    """Train in the background."""
    run = _configured(options)
    print(f"Run {run.name!r} {'is trained now' if jobs.start(run) else 'was being trained already'}.\n{_ways_on(run)}")
    return 0


def watch(options: argparse.Namespace) -> int:
    """Show what happens until the trainer is gone; 1 when it did not stop or finish."""
    run = _known(options)
    try:
        for event in jobs.follow(run):
            if event is not None:
                _show(event)
    except KeyboardInterrupt:
        print(f"\nNo longer watched; the training goes on.\n{_ways_on(run)}")
        return 0
    if fate := jobs.fate(run):
        print(f"\n{fate}", file=sys.stderr)
    return int(bool(fate))


def stop(options: argparse.Namespace) -> int:
    """Tell the trainer to stop."""
    run = _known(options)
    told = "is told to finish its step, save and stop" if jobs.stop(run) else "is not being trained"
    print(f"Run {run.name!r} {told}.")
    return 0


def extend(options: argparse.Namespace) -> int:
    """Give a run more epochs or a stage; nothing is trained."""
    from lorakit.run.extend import add_stage, extend

    run = _known(options)
    if options.stage:
        add_stage(run, with_changes({}, options.stage))
    else:
        extend(run, options.epochs, options.way)
    print(f"Run {run.name!r} has more to train. Go on: lorakit start {run.project.folder} --run {run.name}")
    return 0


def status(options: argparse.Namespace) -> int:
    """The state of every run, with the first line of what became of its trainer."""
    project = project_at(options.project)
    found = project_status(project)
    if options.json:
        print(json.dumps([vars(run) for run in found], indent=1, ensure_ascii=False))
        return 0
    for run in found:
        loss = "" if run.loss is None else f"  loss {run.loss:.4f}"
        print(
            f"{run.name:20} {run.state:9} step {run.step} of {run.steps}{loss}"
            f"  saved at {run.saved_step}, {len(run.loras)} files"
        )
        if fate := jobs.fate(project.run(run.name)):
            print(f"  ! {fate.splitlines()[0]}")
    if not found:
        print(f"No runs yet in {project.folder}.")
    return 0


# ---- lines -----------------------------------------------------------------------------------------------------------


def _show(event: events.Event) -> None:
    """One line; steps overwrite each other on a terminal, and are thinned out in a log file."""
    on_screen = sys.stdout.isatty()
    if isinstance(event, events.Stepped):
        loss = "left out" if event.loss is None else f"{event.loss:.4f}"
        line = f"step {event.step}  epoch {event.epoch}  loss {loss}  lr {event.lr:.2e}"
        line += f"  {event.images_per_second:.2f} images/s"
        if on_screen:
            print(f"\r{line}  {event.memory_gb:.1f} GB  ", end="", flush=True)
        elif event.step % EVERY == 0:
            print(line, flush=True)
    elif on_screen or not isinstance(event, events.Progress) or not event.done % EVERY or event.done == event.total:
        print(("\n" if on_screen else "") + TOLD[type(event)].format(**vars(event)), flush=True)


def _ways_on(run: Run) -> str:
    """The commands for a run that is trained in a process of its own."""
    where = f"{run.project.folder} --run {run.name}"
    return f"Watch it: lorakit watch {where}\nStop it:  lorakit stop {where}"
