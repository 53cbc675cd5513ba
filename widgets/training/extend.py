"""Continue a run: resume it, add epochs, or start a new run from its weights, each shown before it is done."""

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
from lorakit.run.create import inherited, save_from_weights
from lorakit.run.stages import lr_curve, stage_steps
from lorakit.training import jobs
from widgets.i18n import say
from widgets.page import AMBER, GREEN, GREY, RED, WIDTH, aside, box
from widgets.plain import show
from widgets.plot import Curve, lines, number
from widgets.project.labels import labelled

# A way besides those of extend.WAYS: a further stage with settings of its own.
STAGE = "stage"
WAYS = (*extend.WAYS, STAGE)
# Share of the highest learning rate below which a step changes almost nothing.
FLAT = 0.02


def more_epochs(run: Run, epochs: int, way: str = "") -> None:
    """Show the ways to train a run for `epochs` epochs in total: a plot, a sentence and a button for each.

    With `way` ("stretch", "hold", "stage") it is done at once. Train the run afterwards. In a run of several stages
    the epochs are those of its last stage. Nothing happens where as many are done or planned already.
    """
    from IPython.display import display

    try:
        if way:
            _show(_do(run, epochs, way))
            return
        _show(f"<div>{render_title(run, epochs)}</div>")
        answer = ipywidgets.HTML()
        buttons: list[ipywidgets.Button] = []
        # `each=each` binds the way of this button; without it all buttons would do what the last one does.
        for each in ways(run, epochs):
            button = _button(_name(each), lambda each=each: _do(run, epochs, each), answer, buttons)
            display(ipywidgets.HTML(render(run, epochs, each)), ipywidgets.HBox([button]))
        display(answer)
    except extend.NothingToDo as error:
        _show(box(labelled(str(error)), AMBER, say("Nothing to do")))


def ways(run: Run, epochs: int) -> tuple[str, ...]:
    """The ways to so many epochs. Raises NothingToDo where as many are done or planned already."""
    extend.more_epochs(run, epochs, "hold")  # raises NothingToDo
    # Fewer epochs than planned need no further stage.
    return WAYS if _further(run, epochs) > 0 else extend.WAYS


def continue_run(run: Run) -> None:
    """Show two buttons: resume this run, or start a new run from its weights."""

    # Messages go into a widget: Colab drops what a click prints.
    answer, buttons = ipywidgets.HTML(), []
    name = ipywidgets.Text(value=_free_name(run), description=say("New name"), layout=ipywidgets.Layout(width="280px"))
    resume = _button(say("Resume this run"), lambda: _resume(run), answer, buttons)
    begin = _button(
        say("Start a new run from these weights"), lambda: _about_new(new_run_from(run, name.value)), answer, buttons
    )
    about = (
        say("Steps, optimizer and learning rate continue. The result is the same as without a break."),
        say("Starts from the newest LoRA file; steps, optimizer and learning rate start over."),
    )
    first = [ipywidgets.HBox([resume]), ipywidgets.HTML(aside(about[0]))]
    second = [ipywidgets.HBox([begin]), name, ipywidgets.HTML(aside(about[1]))]
    show(ipywidgets.VBox([*first, *second, answer]))


def new_run_from(source: Run | str | Path, name: str, like: Run | None = None) -> Run:
    """Create the run `name`, which starts from the weights of `source`: a run's newest LoRA file, or any LoRA file.

    Its other settings are those of the run, or of `like` where `source` is a file. Raises UserError when the run has
    no LoRA file yet, when a run of that name has trained, or when the file does not fit these settings.
    """
    model = source if isinstance(source, Run) else like
    if model is None:
        raise UserError(
            say("A LoRA file has no settings. Name a run that has them: new_run_from(file, name, like=run).")
        )
    if isinstance(source, Run):
        if not (steps := source.lora_steps()):
            raise UserError(
                say("Run {name} has no LoRA file yet. Train it until it saves the first one.", name=repr(source.name))
            )
        source = source.lora_file(steps[-1])
    run = model.project.run(name)
    save_from_weights(run, str(source), inherited(settings_of(model)))
    return run


# ---- as HTML --------------------------------------------------------------------------------------------------------


def render_title(run: Run, epochs: int) -> str:
    """The run, the epochs in total, and how far it is."""
    text = say("{epochs} epochs in total for run {name} ({done} steps done)", **_fields(run, epochs))
    if read_config(run).stages:
        text += f" · {say('counts epochs of the last stage only')}"
    return f'<div style="font-weight:bold;max-width:{WIDTH}px">{html.escape(text)}</div>'


def render(run: Run, epochs: int, way: str) -> str:
    """One way: a plot of the old and the new learning rate, and what the way does."""
    # Learning rates of all steps, past ones too, as they are planned now and as this way would plan them.
    old, new = _curve(run, read_config(run)), _curve(run, planned(run, epochs, way))
    done = saved_step(run)
    plot = lines(
        [
            Curve(say("current plan"), list(enumerate(old, 1)), GREY, dashed=True),
            Curve(say("new plan"), list(enumerate(new, 1))),
        ],
        title=_name(way),
        x_label=say("step"),
        marks=(float(done),),
        height=130,
    )
    pieces = [
        plot,
        f'<div style="max-width:{WIDTH}px;line-height:1.5">{html.escape(_meaning(run, epochs, way, old))}</div>',
    ]
    # A schedule that falls to zero leaves nothing to hold.
    if way == "hold" and old[-1] < FLAT * max(old):
        pieces.append(box(say("That is close to zero: more epochs would hardly change anything."), AMBER))
    return "".join(pieces)


def planned(run: Run, epochs: int, way: str) -> RunConfig:
    """The config that a way would give the run; nothing is saved. Raises ConfigError for an unknown way."""
    if way == STAGE:
        return extend.with_stage(run, _overrides(run, epochs))
    return extend.more_epochs(run, epochs, way)


def _curve(run: Run, config: RunConfig) -> list[float]:
    return lr_curve(config, extend.steps_per_epoch(run, config))


def _name(way: str) -> str:
    return {"stretch": say("Stretch"), "hold": say("Hold"), STAGE: say("New stage")}[way]


def _meaning(run: Run, epochs: int, way: str, old: list[float]) -> str:
    if way == "stretch":
        return say(
            "The learning rate curve is stretched over all {epochs} epochs, so it falls later.", **_fields(run, epochs)
        )
    if way == "hold":
        return say("The learning rate stays at its last value, {rate}, until the end.", rate=number(old[-1]))
    n = _further(run, epochs)
    return say(
        "The current plan is trained to its end; then {n} epochs follow with their own learning rate curve.", n=n
    )


def _fields(run: Run, epochs: int) -> dict[str, object]:
    return {"epochs": epochs, "name": run.name, "done": saved_step(run)}


def _further(run: Run, epochs: int) -> int:
    """Epochs beyond those of the last stage; 0 or less when it has as many already."""
    config = read_config(run)
    per_epoch = extend.steps_per_epoch(run, config)
    # A stage may end within an epoch, as its length can be given in steps.
    return math.ceil(epochs - stage_steps(config, per_epoch)[-1] / per_epoch[-1])


def _overrides(run: Run, epochs: int) -> dict[str, dict[str, int]]:
    return {"loop": {"epochs": _further(run, epochs)}}


# ---- actions --------------------------------------------------------------------------------------------------------


def _do(run: Run, epochs: int, way: str) -> str:
    """Extend the run, and return a message about it as HTML."""
    if way == STAGE:
        ways(run, epochs)  # raises NothingToDo
        config = extend.add_stage(run, _overrides(run, epochs))
    else:
        config = extend.extend_run(run, epochs, way)
    steps = sum(stage_steps(config, extend.steps_per_epoch(run, config)))
    text = say(
        "{way}: run {name} now has {steps} steps. Train it to continue.", way=_name(way), name=run.name, steps=steps
    )
    return box(text, GREEN)


def _resume(run: Run) -> str:
    if jobs.start(run):
        return box(say("Run {name} is training. Watch it in the training cell.", name=run.name), GREEN)
    return box(say("Run {name} is already training.", name=run.name), AMBER)


def _about_new(run: Run) -> str:
    text = say(
        "Run {name} is ready. Enter that name in the form's first field, then run the training cell.", name=run.name
    )
    return box(text, GREEN)


def _free_name(run: Run) -> str:
    taken = {other.name for other in run.project.runs()}
    return next(name for i in range(2, 1000) if (name := f"{run.name}-{i}") not in taken)


def _button(
    label: str, act: Callable[[], str], answer: ipywidgets.HTML, buttons: list[ipywidgets.Button]
) -> ipywidgets.Button:
    """A button, added to `buttons`, that shows the message of `act` in `answer`; after a success all are disabled."""
    button = ipywidgets.Button(description=label, layout=ipywidgets.Layout(width="auto", min_width="160px"))
    buttons.append(button)

    def on_click(_: ipywidgets.Button) -> None:
        try:
            answer.value = act()
            # Done once: a second click would extend the run again.
            for each in buttons:
                each.disabled = True
        except UserError as error:
            answer.value = box(labelled(str(error)), RED)

    button.on_click(on_click)
    return button


def _show(text: str) -> None:
    from IPython.display import HTML, display

    display(HTML(text))
