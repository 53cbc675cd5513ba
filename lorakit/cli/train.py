"""`lorakit train`, `start`, `watch`, `stop`, `extend` and `status`: runs in a terminal, a line for every event."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from lorakit import events
from lorakit.cli.fits import before_start
from lorakit.cli.options import SET, default_settings, existing_run, project_at, run_options, with_changes
from lorakit.project import Run
from lorakit.training import jobs
from lorakit.training.status import project_status

# One line per event; steps are printed by `_print`.
LINES = {
    events.Started: "{images} images, step {step} of {steps} ({steps_per_epoch} per epoch), {precision} on {device}, "
    "prediction type {prediction}",
    events.Progress: "encoding {what}: {done} of {total}",
    events.Saved: "saved step {step}  {lora}",
    events.Sampled: "sample {image}",
    events.Warned: "! {text}",
    events.Stopped: "stopped after step {step}: {reason}",
    events.Failed: "failed: {reason}",
    events.Finished: "finished after step {step}: {lora}",
}
# A log file gets every tenth line of frequent events.
EVERY = 10


def add(add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add these verbs to those of `lorakit`."""
    # Shared by `train` and `start`.
    settings = argparse.ArgumentParser(add_help=False, parents=[run_options()])
    settings.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    settings.add_argument(
        "--set", **SET, help='one setting, e.g. adapter.rank=32; a text as it stands, a list as [a, "b, c"]'
    )
    settings.add_argument(
        "--gpu-preset",
        default="",
        metavar="MEMORY",
        help="settings that fit a GPU, e.g. '8 GB'; other settings override them",
    )
    settings.add_argument(
        "--from-weights", default="", metavar="FILE", help="start a new run from the weights of a LoRA file"
    )
    add_verb(train, "train a run; the same command again resumes it from its newest training state", settings)
    add_verb(start, "train a run in the background; it continues when this terminal is closed", settings)
    add_verb(watch, "show what happens in a run, wherever it trains; Ctrl-C only ends the watching", run_options())
    add_verb(stop, "let a run that trains on this machine finish its step, save and stop", run_options())
    _add_extend(add_verb)
    verb = add_verb(status, "show the runs of a project")
    verb.add_argument("project", type=Path, help="project folder")
    verb.add_argument("--json", action="store_true", help="print JSON")


def _add_extend(add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    verb = add_verb(extend, "give a run more epochs or one more stage, even a finished one", run_options())
    more = verb.add_mutually_exclusive_group(required=True)
    more.add_argument("--epochs", type=int, help="total number of epochs of its last stage")
    more.add_argument(
        "--stage", action="append", metavar="KEY=VALUE", help="one setting of the new, last stage; may be repeated"
    )
    verb.add_argument(
        "--way",
        default="",
        help="required with --epochs: 'stretch' the learning rate curve over all of them, or 'hold' its last value",
    )


def _run_to_train(options: argparse.Namespace) -> Run:
    """The run that was named, its config written anew if there are options that change it."""
    from lorakit.run.create import create_run

    project = project_at(options.project)
    run = project.run(options.run)
    # Nothing to change: the run is resumed with the config it has.
    if run.exists() and not (options.config or options.set or options.gpu_preset or options.from_weights):
        return run
    settings = with_changes(_settings(run, options), options.set)
    return create_run(project, settings, options.run, gpu_preset=options.gpu_preset, from_weights=options.from_weights)


def _settings(run: Run, options: argparse.Namespace) -> dict:
    """What `--set` and `--gpu-preset` change: the settings of a file, of the run itself, or of the run whose weights
    it starts from.
    """
    from lorakit.config import read_yaml
    from lorakit.run.config import settings_of
    from lorakit.run.create import inherited

    if options.config:
        return read_yaml(options.config)
    # <run>/lora/<file>: beside the folder is that run's own config.
    other = Path(options.from_weights).absolute().parent.parent / run.config_file.name
    if run.exists():
        settings = settings_of(run, options.gpu_preset)
    else:
        settings = read_yaml(other) if options.from_weights and other.exists() else default_settings()
    return inherited(settings) if options.from_weights else settings


# ---- verbs: each returns the exit status -----------------------------------------------------------------------------


def train(options: argparse.Namespace) -> int:
    """Train in the foreground."""
    from lorakit.training.loop import train

    run = _run_to_train(options)
    # not in a log file: what started this process has said it
    if sys.stdout.isatty() and (line := before_start(run)):
        print(line, flush=True)
    # Uploading runs beside the training, also when it was started in the foreground.
    jobs.share(run)
    for event in train(run):
        try:
            _print(event)
        # The terminal was closed, or nobody reads the pipe. All events are in the log, so training continues.
        except OSError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return 0


def start(options: argparse.Namespace) -> int:
    """Train in the background."""
    from lorakit.run.advice import setting_warnings
    from lorakit.run.config import read_config

    run = _run_to_train(options)
    # what depends on the dataset is in the log, and shown by `watch`
    for warning in setting_warnings(read_config(run)):
        print(f"! {warning}")
    if line := before_start(run):
        print(line)
    state = "is training now" if jobs.start(run) else "was training already"
    print(f"Run {run.name!r} {state}.\n{_commands(run)}")
    return 0


def watch(options: argparse.Namespace) -> int:
    """Print events until the trainer is gone; 1 when it did not stop or finish."""
    run = existing_run(options)
    try:
        for event in jobs.follow(run):
            if event is not None:
                _print(event)
    except KeyboardInterrupt:
        print(f"\nNo longer watching; the training continues.\n{_commands(run)}")
        return 0
    # On stderr and with exit status 1, so that a script notices.
    if fate := jobs.fate(run):
        print(f"\n{fate}", file=sys.stderr)
    return int(bool(fate))


def stop(options: argparse.Namespace) -> int:
    """Ask the trainer to stop."""
    run = existing_run(options)
    state = "finishes its step, saves and stops" if jobs.stop(run) else "is not training"
    print(f"Run {run.name!r} {state}.")
    return 0


def extend(options: argparse.Namespace) -> int:
    """Give a run more epochs or a stage; nothing is trained."""
    from lorakit.config import ConfigError
    from lorakit.run.extend import WAYS, add_stage, extend_run

    run = existing_run(options)
    if options.stage:
        add_stage(run, with_changes({}, options.stage))
    # No default: the two ways give different learning rates, so the choice is the user's.
    elif not options.way:
        raise ConfigError(
            f"--epochs needs --way; allowed are {', '.join(WAYS)}: what the learning rate does from now on."
        )
    else:
        extend_run(run, options.epochs, options.way)
    print(f"Run {run.name!r} has more to train. Continue: lorakit start {run.project.folder} --run {run.name}")
    return 0


def status(options: argparse.Namespace) -> int:
    """Print the state of every run, with the first line about a trainer that died."""
    project = project_at(options.project)
    runs = project_status(project)
    if options.json:
        print(json.dumps([vars(run) for run in runs], indent=1, ensure_ascii=False))
        return 0
    for run in runs:
        loss = "" if run.loss is None else f"  loss {run.loss:.4f}"
        print(
            f"{run.name:20} {run.state:9} step {run.step} of {run.steps}{loss}"
            f"  saved at {run.saved_step}, {len(run.loras)} files"
        )
        if fate := jobs.fate(project.run(run.name)):
            print(f"  ! {fate.splitlines()[0]}")
    if unread := [run.name for run in runs if run.skipped]:
        print(f"! Log lines of {', '.join(unread)} that are no events of this version of lorakit were skipped.")
    if not runs:
        print(f"No runs yet in {project.folder}.")
    return 0


# ---- lines -----------------------------------------------------------------------------------------------------------


def _print(event: events.Event) -> None:
    """One line; steps overwrite each other on a terminal, and only some of them go into a log file."""
    is_terminal = sys.stdout.isatty()
    if isinstance(event, events.Stepped):
        loss = "skipped" if event.loss is None else f"{event.loss:.4f}"
        line = f"step {event.step}  epoch {event.epoch}  loss {loss}  lr {event.lr:.2e}"
        line += f"  {event.images_per_second:.2f} images/s"
        if is_terminal:
            # "\r" returns to the start of the line; the blanks at its end cover a longer line before.
            print(f"\r{line}  {event.memory_gb:.1f} GB  ", end="", flush=True)
        elif event.step % EVERY == 0:
            print(line, flush=True)
        return
    is_rare = not isinstance(event, events.Progress) or event.done % EVERY == 0 or event.done == event.total
    if is_terminal or is_rare:
        print(("\n" if is_terminal else "") + LINES[type(event)].format(**vars(event)), flush=True)


def _commands(run: Run) -> str:
    """What to type next about a run that trains in a process of its own."""
    options = f"{run.project.folder} --run {run.name}"
    return f"Watch it: lorakit watch {options}\nStop it:  lorakit stop {options}"
