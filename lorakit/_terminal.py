"""What a terminal shows of a run: a line for an event, a line for its state."""

from __future__ import annotations

import sys

from lorakit import events, jobs
from lorakit.project import Run
from lorakit.status import RunStatus

TOLD = {
    events.Started: "{images} pictures, step {step} of {steps} ({steps_per_epoch} an epoch), {precision} on {device}",
    events.Progress: "encoding {what}: {done} of {total}",
    events.Saved: "saved step {step}  {lora}  {matched}",
    events.Sampled: "sample {image}",
    events.Warned: "! {text}",
    events.Stopped: "stopped after step {step}: {reason}",
    events.Failed: "failed: {reason}",
    events.Finished: "finished after step {step}: {lora}",
}
EVERY = 10  # of the events that come often one line in so many is written to a file


def show(event: events.Event) -> None:
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


def state_line(status: RunStatus, run: Run) -> str:
    """The state of a run, with the first line of what became of its trainer."""
    loss = "" if status.loss is None else f"  loss {status.loss:.4f}"
    fate = jobs.fate(run).partition("\n")[0]
    return (
        f"{status.name:20} {status.state:9} step {status.step} of {status.steps}{loss}"
        f"  saved at {status.saved_step}, {len(status.loras)} files" + (f"\n  ! {fate}" if fate else "")
    )


def ways_on(run: Run) -> str:
    """The commands for a run that is trained in a process of its own."""
    where = f"{run.project.folder} --run {run.name}"
    return f"Watch it: lorakit watch {where}\nStop it:  lorakit stop {where}"
