"""The state of a project's runs, read from their folders alone."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.events import Sampled, Saved, Started, Stepped
from lorakit.project import Project, Run
from lorakit.training import jobs

# Share of the old value in the smoothed loss.
SMOOTHING = 0.95


def smoothed(losses: list[float]) -> list[float]:
    """Exponential mean over about 20 steps; a function of the whole log, so a resume leaves no mark in it."""
    means: list[float] = []
    for loss in losses:
        means.append(loss if not means else SMOOTHING * means[-1] + (1 - SMOOTHING) * loss)
    return means


@dataclass(frozen=True)
class RunStatus:
    """What a run has reached."""

    name: str
    # new, running, stopped, finished, failed (with an error in the log) or cut (died and logged no reason)
    state: str
    step: int
    steps: int
    loss: float | None  # smoothed over about 20 steps
    saved_step: int  # 0: nothing saved yet
    loras: tuple[str, ...]  # exported files, relative to the run's folder
    newest_sample: str
    skipped: bool  # whether lines of its log are no events of this version


def run_status(run: Run) -> RunStatus:
    """Read one run's log from its beginning; `jobs.fate` explains why it failed or was cut."""
    step, steps, saved, sample = 0, 0, 0, ""
    # step -> loss: a resumed run repeats the steps after its last save, and the last time counts
    losses: dict[int, float] = {}
    state, log, skipped = jobs.history(run)
    for _, event in log:
        if isinstance(event, Started):
            step, steps = event.step, event.steps
        elif isinstance(event, Stepped):
            step = event.step
            if event.loss is not None:
                losses[step] = event.loss
        elif isinstance(event, Saved):
            saved = event.step
        elif isinstance(event, Sampled):
            sample = event.image
    loss = smoothed([losses[step] for step in sorted(losses)])[-1] if losses else None
    loras = tuple(f"lora/{run.lora_file(step).name}" for step in run.lora_steps())
    return RunStatus(run.name, state, step, steps, loss, saved, loras, sample, bool(skipped))


def project_status(project: Project) -> list[RunStatus]:
    """All runs of a project, by name."""
    return [run_status(run) for run in project.runs()]
