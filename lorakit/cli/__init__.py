"""The same verbs for a terminal: `lorakit train`, `start`, `watch`, `stop`, `status`, `grid`, `export` and others."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from lorakit.cli import data, examine, regularize, tags, train
from lorakit.cli.train import project_at, with_changes
from lorakit.errors import UserError

BAD_INPUT, INTERRUPTED = 2, 130  # exit status


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status.

    0, 1 for a check that failed, 2 (with one message) for bad input, 130 when it was interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.verb(options)
    except UserError as error:
        print(f"lorakit: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:  # training ends otherwise, once it has begun
        print("\nlorakit: interrupted; what is on disk stays, and the same command goes on.", file=sys.stderr)
        return INTERRUPTED


Add = Callable[..., argparse.ArgumentParser]  # (verb, help, *parents)
SET = {"action": "append", "default": [], "metavar": "KEY=VALUE"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lorakit", description="Train LoRAs for diffusion models; stop and resume exactly."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(verb, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made = verbs.add_parser(verb.__name__.lstrip("_"), help=help, description=help, parents=parents)
        made.set_defaults(verb=verb)
        return made

    demo = add(_demo, "train, compare and export on the embedded base model; leaves everything in one folder")
    demo.add_argument("--output", type=Path, default=Path("demo-output"), help="the folder (default: demo-output)")
    doctor = add(_doctor, "what this machine has and what to do about what is missing")
    doctor.add_argument("folder", type=Path, nargs="?", default=Path(), help="where the project is to be")
    _add_models(verbs.add_parser("model", help="model files", description="Model files."))
    for group, what, modules in (
        ("data", "images: bring in, examine, prepare", (data, examine, regularize)),
        ("tag", "captions: taggers, edits, undo, locks", (tags,)),
    ):
        members = verbs.add_parser(group, help=what, description=what).add_subparsers(required=True, metavar="VERB")
        for module in modules:
            module.add(members)
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("project", type=Path, help="project folder; its images are in dataset/")
    run.add_argument("--run", default="run1", metavar="NAME", help="name of the run (default: run1)")
    _add_training(add, run)
    _add_projects(add)
    _add_results(add, run)
    return parser


def _add_models(model: argparse.ArgumentParser) -> None:
    verbs = model.add_subparsers(required=True, metavar="VERB")
    what = "what each model file is, whether it is whole, and what is missing to train; reads headers only"
    check = verbs.add_parser("check", help=what, description=what)
    check.set_defaults(verb=_model_check)
    check.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="files, or folders that are searched")
    what = "bring a base model to this machine and check it; a cut download goes on where it was"
    fetch = verbs.add_parser("fetch", help=what, description=what)
    fetch.set_defaults(verb=_model_fetch)
    fetch.add_argument("--set", **SET, help="e.g. model.source=owner/name")


def _add_training(add: Add, run: argparse.ArgumentParser) -> None:
    settings = argparse.ArgumentParser(add_help=False, parents=[run])
    settings.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    settings.add_argument("--set", **SET, help="one setting, e.g. adapter.rank=32")
    settings.add_argument(
        "--gpu-preset", default="", metavar="MEMORY", help="settings that suit a GPU, e.g. '8 GB'; others win over them"
    )
    settings.add_argument(
        "--from-weights",
        metavar="FILE",
        help="begin a new run with a LoRA file, e.g. of another run, which it continues",
    )
    add(train.train, "train a run; the same command again goes on from its newest state", settings)
    add(train.start, "train a run in the background: it goes on when this terminal is closed", settings)
    add(train.watch, "show what happens in a run, wherever it is trained; Ctrl-C ends the watching only", run)
    add(train.stop, "let a run that is trained anywhere on this machine finish its step, save and stop", run)
    extend = add(train.extend, "more epochs, or one more stage, for a run that has begun or is finished", run)
    more = extend.add_mutually_exclusive_group(required=True)
    more.add_argument("--epochs", type=int, help="epochs in all, in its last stage")
    more.add_argument(
        "--stage", action="append", metavar="KEY=VALUE", help="one setting of a stage after all others; give it again"
    )
    extend.add_argument(
        "--way", default="", help="with --epochs: stretch the learning rate's curve over all, or hold its last value"
    )


def _add_projects(add: Add) -> None:
    opened = add(
        _open, "download a project from its remote copy on a slow disk (e.g. Google Drive) to this machine's own disk"
    )
    opened.add_argument("remote", type=Path, help="folder of the remote copy")
    opened.add_argument(
        "--local", type=Path, metavar="FOLDER", help="where projects lie on this machine (default: the fastest disk)"
    )
    sync = add(
        _sync, "upload a project's new files to its remote copy, in the foreground; `start` does so in the background"
    )
    sync.add_argument("project", type=Path)
    status = add(train.status, "the runs of a project")
    status.add_argument("project", type=Path)
    status.add_argument("--json", action="store_true", help="machine-readable")


def _add_results(add: Add, run: argparse.ArgumentParser) -> None:
    grid = add(_grid, "an XY grid of a run's LoRA files", run)
    grid.add_argument(
        "--x",
        default="checkpoint",
        metavar="AXIS[=VALUES]",
        help="checkpoint (all, with the LoRA off first), strength=0.6,0.8,1, seed=1,2, prompt='one | two'",
    )
    grid.add_argument("--y", default="strength=0.6,0.8,1", metavar="AXIS[=VALUES]", help="as --x")
    grid.add_argument("--prompt", help="where no axis is prompt (default: the first sample prompt, or the trigger)")
    grid.add_argument("--name", default="grid", help="folder of the grid inside the run (default: grid)")
    grid.add_argument("--set", **SET, help="look of the images, e.g. steps=30")
    export = add(_export, "check a run's LoRA file and copy it out", run)
    export.add_argument("--step", type=int, help="default: the newest")
    export.add_argument("--output", type=Path, default=Path(), help="folder or file name (default: here)")


def _demo(options: argparse.Namespace) -> int:
    from lorakit.demo.quickstart import execute

    execute(options.output)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from lorakit.doctor import examine

    for finding in examine(options.folder.absolute()):
        print(f"{finding.name:16} {finding.value}" + (f"   ! {finding.cure}" if finding.cure else ""))
    return 0


def _model_fetch(options: argparse.Namespace) -> int:
    import torch

    from lorakit.hub import fetch
    from lorakit.models import family
    from lorakit.models.files.check import check
    from lorakit.run.config import configure

    model = configure(with_changes({"model": {"family": "sd15"}}, options.set)).model
    print(f"looking for {model.source}", flush=True)
    family(model.family).Model(model, torch.device("cpu"), torch.float32)  # which fetches all of its files
    for finding in check([fetch(model.source)]):
        print(finding)
    print(f"The base model is here, and it can be trained as {model.family}.")
    return 0


def _model_check(options: argparse.Namespace) -> int:
    from lorakit.models.files.check import check, missing

    findings = check(options.paths)
    for finding in findings:
        print(finding)
    for line in missing(findings):
        print(f"! {line}")
    if not findings:
        print("No model files there.")
    return int(any(finding.problem for finding in findings))


def _open(options: argparse.Namespace) -> int:
    from lorakit.project import platforms
    from lorakit.sync.workspace import open_remote

    print(open_remote(options.remote, options.local or platforms.find(os.environ).fast).folder)
    return 0


def _sync(options: argparse.Namespace) -> int:
    from lorakit.sync.service import serve

    serve(project_at(options.project))
    return 0


def _grid(options: argparse.Namespace) -> int:
    from lorakit.config import from_dict, to_dict
    from lorakit.generation.grid import Done, grid
    from lorakit.run.config import read_config
    from lorakit.run.sampling import SamplingConfig

    run = project_at(options.project).run(options.run)
    config = read_config(run)
    fields = SamplingConfig.__dataclass_fields__
    sampling = {name: value for name, value in to_dict(config.sample).items() if name in fields}
    prompt = options.prompt or next(iter(config.sample.prompts), config.data.trigger)
    for event in grid(
        run,
        _axis(options.x, run),
        _axis(options.y, run),
        prompt=prompt,
        name=options.name,
        sampling=from_dict(SamplingConfig, with_changes(sampling, options.set)),
    ):
        print(
            f"grid {event.image}\nrecord {event.record}"
            if isinstance(event, Done)
            else f"image {event.done} of {event.total}",
            flush=True,
        )
    return 0


def _axis(text: str, run):
    from lorakit.config import ConfigError
    from lorakit.generation.generator import OFF
    from lorakit.generation.grid import Axis

    name, _, values = text.partition("=")
    if name == "checkpoint" and not values:
        return Axis(name, (OFF, *run.lora_steps()))
    items = [item.strip() for item in values.split("|" if name == "prompt" else ",") if item.strip()]
    kinds = {
        "checkpoint": lambda item: item if item == OFF else int(item),
        "strength": float,
        "seed": int,
        "prompt": str,
    }
    try:
        values = (
            tuple(kinds[name](item) for item in items) if name in kinds else tuple(items)
        )  # Axis refuses other names
    except ValueError:
        raise ConfigError(f"{text} is not an axis: {name} wants numbers, e.g. {name}=1,2.") from None
    return Axis(name, values)


def _export(options: argparse.Namespace) -> int:
    from lorakit.generation.generator import deliver
    from lorakit.run.config import read_config

    run = project_at(options.project).run(options.run)
    read_config(run)
    step = options.step if options.step is not None else max(run.lora_steps(), default=0)
    file, matched = deliver(run, step, options.output)
    print(f"{file}: {matched} modules matched")
    return 0
