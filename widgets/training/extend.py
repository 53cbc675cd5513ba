"""Going on with a run: resume it, give it more epochs, or start a new run from its weights; what each of them means."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from pathlib import Path

import ipywidgets

from lorakit.errors import UserError
from lorakit.project import Run
from lorakit.run import extend
from lorakit.run.checkpoint import saved_step
from lorakit.run.config import RunConfig, read_config, settings_of
from lorakit.run.create import save_from_weights
from lorakit.run.stages import lr_curve, stage_steps
from lorakit.training import jobs
from widgets.i18n import say
from widgets.page import AMBER, GREEN, GREY, RED, WIDTH, aside, box
from widgets.plot import Curve, lines, number

STAGE = "stage"  # beside extend.WAYS
WAYS = (*extend.WAYS, STAGE)
FLAT = 0.02  # share of the highest rate below which steps change next to nothing


def more_epochs(run: Run, epochs: int, way: str = "") -> None:
    """Show what `epochs` epochs in all could mean for a run: an image, a sentence and a button for each way.

    With `way` (stretch, hold, stage) it is done at once. Train the run afterwards to go on. For a run of several stages
    epochs are those of its last one. Epochs that are done or planned already are told, and nothing happens.
    """
    from IPython.display import display

    try:
        if way:
            _show(_do(run, epochs, way))
            return
        _show(f"<div>{render_title(run, epochs)}</div>")
        answer = ipywidgets.HTML()
        buttons: list[ipywidgets.Button] = []
        for each in ways(run, epochs):
            button = _button(_name(each), lambda each=each: _do(run, epochs, each), answer, buttons)
            display(ipywidgets.HTML(render(run, epochs, each)), ipywidgets.HBox([button]))
        display(answer)
    except extend.NothingToDo as error:
        _show(box(str(error), AMBER, say("Nothing to do")))


def ways(run: Run, epochs: int) -> tuple[str, ...]:
    """What can be done for that many epochs. Raises NothingToDo when there is nothing."""
    extend.more_epochs(run, epochs, "hold")
    return WAYS if _further(run, epochs) > 0 else extend.WAYS  # fewer than planned are no new stage


def continue_run(run: Run) -> None:
    """Two buttons with two names: resume this run, and start a new run from its weights."""
    from IPython.display import display

    answer, buttons = ipywidgets.HTML(), []
    name = ipywidgets.Text(value=_free_name(run), description=say("new name"), layout=ipywidgets.Layout(width="280px"))
    resume = _button(say("Resume this run"), lambda: _resume(run), answer, buttons)
    begin = _button(
        say("Start a new run from these weights"), lambda: _told_new(new_run_from(run, name.value)), answer, buttons
    )
    about = (
        say("All of its state goes on: steps, optimizer, learning rate. It ends as if it had never been cut."),
        say("Only the newest LoRA file is taken over; steps, optimizer and learning rate begin anew."),
    )
    first = [ipywidgets.HBox([resume]), ipywidgets.HTML(aside(about[0]))]
    second = [ipywidgets.HBox([begin]), name, ipywidgets.HTML(aside(about[1]))]
    display(ipywidgets.VBox([*first, *second, answer]))


def new_run_from(source: Run | str | Path, name: str, like: Run | None = None) -> Run:
    """A new run called `name` that starts from the weights of `source`: a run's newest LoRA file, or any file.

    Its other settings are those of the run, or of `like` where `source` is a file. Raises UserError when the run has
    no file yet, has begun under that name, or the file cannot be held.
    """
    model = source if isinstance(source, Run) else like
    if model is None:
        raise UserError("Whose settings shall the new run have? new_run_from(file, name, like=a run of the project).")
    if isinstance(source, Run):
        if not (steps := source.lora_steps()):
            raise UserError(f"Run {source.name!r} has exported no LoRA file yet; train it up to its first one.")
        source = source.lora_file(steps[-1])
    run = model.project.run(name)
    settings = {part: values for part, values in settings_of(model).items() if part != "stages"}
    save_from_weights(run, str(source), settings)
    return run


# ---- what is shown ---------------------------------------------------------------------------------------------------


def render_title(run: Run, epochs: int) -> str:
    """Of which run, and how far it is."""
    told = say("{epochs} epochs for run {name}, which has {done} steps behind it", **_fields(run, epochs))
    if read_config(run).stages:
        told += f" · {say('epochs of its last stage alone')}"
    return f'<div style="font-weight:bold;max-width:{WIDTH}px">{html.escape(told)}</div>'


def render(run: Run, epochs: int, way: str) -> str:
    """One way as HTML: the old learning rate, the new one, and what that means."""
    old, new = _curve(run, read_config(run)), _curve(run, planned(run, epochs, way))
    done = saved_step(run)
    drawn = lines(
        [
            Curve(say("planned until now"), list(enumerate(old, 1)), GREY, dashed=True),
            Curve(say("from now on"), list(enumerate(new, 1))),
        ],
        title=_name(way),
        x_label=say("step"),
        marks=(float(done),),
        height=130,
    )
    pieces = [
        drawn,
        f'<div style="max-width:{WIDTH}px;line-height:1.5">{html.escape(_meaning(run, epochs, way, old))}</div>',
    ]
    if way == "hold" and old[-1] < FLAT * max(old):
        pieces.append(box(say("That is next to nothing: the further epochs would hardly change anything."), AMBER))
    return "".join(pieces)


def planned(run: Run, epochs: int, way: str) -> RunConfig:
    """The config that a way would give the run; nothing is written. Raises ConfigError for another way."""
    if way == STAGE:
        return extend.with_stage(run, _overrides(run, epochs))
    return extend.more_epochs(run, epochs, way)


def _curve(run: Run, config: RunConfig) -> list[float]:
    return lr_curve(config, extend.steps_per_epoch(run, config))


def _name(way: str) -> str:
    return {"stretch": say("Stretch"), "hold": say("Hold"), STAGE: say("New stage")}[way]


def _meaning(run: Run, epochs: int, way: str, old: list[float]) -> str:
    if way == "stretch":
        return say("The curve is planned anew over all {epochs} epochs: it comes down later.", **_fields(run, epochs))
    if way == "hold":
        return say("The curve stays as it is, and its last value, {rate}, is held to the end.", rate=number(old[-1]))
    n = _further(run, epochs)
    return say("What was planned is trained to its end; then {n} epochs follow with a curve of their own.", n=n)


def _fields(run: Run, epochs: int) -> dict[str, object]:
    return {"epochs": epochs, "name": run.name, "done": saved_step(run)}


def _further(run: Run, epochs: int) -> int:
    """Epochs beyond those that the last stage has; below 1 when there are none."""
    config = read_config(run)
    per_epoch = extend.steps_per_epoch(run, config)
    return math.ceil(epochs - stage_steps(config, per_epoch)[-1] / per_epoch[-1])


def _overrides(run: Run, epochs: int) -> dict[str, dict[str, int]]:
    return {"loop": {"epochs": _further(run, epochs)}}


# ---- what is done ----------------------------------------------------------------------------------------------------


def _do(run: Run, epochs: int, way: str) -> str:
    """Do it, and say so in HTML."""
    if way == STAGE:
        ways(run, epochs)  # refuses what is done or planned
        config = extend.add_stage(run, _overrides(run, epochs))
    else:
        config = extend.extend_run(run, epochs, way)
    steps = sum(stage_steps(config, extend.steps_per_epoch(run, config)))
    told = say(
        "{way}: run {name} has {steps} steps now. Train it to go on.", way=_name(way), name=run.name, steps=steps
    )
    return box(told, GREEN)


def _resume(run: Run) -> str:
    if jobs.start(run):
        return box(say("Run {name} goes on. Its own cell shows how.", name=run.name), GREEN)
    return box(say("Run {name} is being trained already.", name=run.name), AMBER)


def _told_new(run: Run) -> str:
    told = say(
        "Run {name} is made. Write that name into the form's first field, then run the training cell.", name=run.name
    )
    return box(told, GREEN)


def _free_name(run: Run) -> str:
    taken = {other.name for other in run.project.runs()}
    return next(name for i in range(2, 1000) if (name := f"{run.name}-{i}") not in taken)


def _button(
    text: str, act: Callable[[], str], answer: ipywidgets.HTML, buttons: list[ipywidgets.Button]
) -> ipywidgets.Button:
    """A button that does something once and shows what came of it; then all `buttons` are off."""
    button = ipywidgets.Button(description=text, layout=ipywidgets.Layout(width="auto", min_width="160px"))
    buttons.append(button)

    def on_click(_: ipywidgets.Button) -> None:
        try:
            answer.value = act()
            for each in buttons:
                each.disabled = True
        except UserError as error:
            answer.value = box(str(error), RED)

    button.on_click(on_click)
    return button


def _show(text: str) -> None:
    from IPython.display import HTML, display

    display(HTML(text))
