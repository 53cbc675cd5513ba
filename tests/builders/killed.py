"""Trainer processes that are killed: everything is imported once, then every try is a fork.

`python killed.py VERB ARGUMENTS` (JSON) prints its findings as JSON. One compute thread, since a fork copies no other.
An uncut run is left in `<folder>-uncut`, since another number of threads rounds otherwise.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from sessions import copy_of

from lorakit import cli, events
from lorakit.events import Progress, Started, Stepped
from lorakit.project import Project, Run
from lorakit.training.loop import train

FILE_OPERATIONS = ("mkdir", "fsync", "replace", "unlink", "rmdir")


def fork(work: Callable[[], object]) -> int:
    """Do `work` in a process of its own; exit status 0, or 1 with a traceback."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        status = work() or 0
    except BaseException:  # nothing may get back into the parent's code
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def ended(child: int) -> tuple[int, int]:
    """(signal that killed it, exit status) of a child, waited for."""
    status = os.waitpid(child, 0)[1]
    return (os.WTERMSIG(status), 0) if os.WIFSIGNALED(status) else (0, os.WEXITSTATUS(status))


def finish(run: Run) -> None:
    """Train to the end, in a process of its own."""
    assert ended(fork(lambda: list(train(run)) and 0)) == (0, 0)


def train_copy(folder: str, name: str) -> None:
    """Train a copy of the run, uncut, in `<folder>-uncut`; whatever a trainer imports is imported after it."""
    list(train(copy_of(Project(folder).run(name), Path(folder + "-uncut"))))


def often(folder: str, name: str, kills: int, seed: int) -> dict:
    """Kill the run's trainer at random moments until it was hit `kills` times; a run that gets to its end is followed
    by the next one from the beginning, so `runs` may be more than one. Returns what was under way at the kills."""
    random.seed(seed)
    fresh, runs, phases, finished = Project(folder).run(name), [], Counter(), False
    measured, begun = copy_of(fresh, Path(folder + "-measured")), time.time()
    finish(measured)
    started, first, last = (
        [at for at, event in events.read(measured.log) if isinstance(event, kind)][index]
        for kind, index in ((Started, 0), (Stepped, 0), (Stepped, -1))
    )
    longest = started - begun + 5 * (last - first) / len(events.steps(measured.log))  # s, so about 2 steps a try
    while phases.total() < kills:
        if not runs or finished:
            runs.append(copy_of(fresh, Path(f"{folder}-{len(runs)}")))
        run = runs[-1]
        if random.random() < 0.2:
            shutil.rmtree(run.project.cache, ignore_errors=True)
        log_bytes = run.log.stat().st_size if run.log.exists() else 0
        child = fork(lambda run=run: list(train(run)) and 0)
        time.sleep(random.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        hit, status = ended(child)
        assert (hit, status) in ((signal.SIGKILL, 0), (0, 0))
        finished = not hit
        if hit:
            phases[under_way(run, log_bytes)] += 1
    finish(runs[-1])
    return {"runs": [str(run.project.folder) for run in runs], "phases": phases, "seconds": time.time() - begun}


def under_way(run: Run, log_bytes: int) -> str:
    """What a killed session was doing; `log_bytes` is the length of the log before it."""
    if any(run.loras.glob("*.part")):
        return "exporting"
    if any(run.states.glob(".*.part")):
        return "saving"
    log = run.log.read_bytes()[log_bytes:] if run.log.exists() else b""
    kinds = {line.split(b'"')[3].decode() for line in log.splitlines() if line.count(b'"') > 3}
    for kind, phase in ((Stepped, "stepping"), (Started, "started"), (Progress, "encoding")):
        if kind.__name__.lower() in kinds:
            return phase
    return "loading"


def everywhere(folder: str, name: str, first: int, every: int) -> list[str]:
    """Kill a session of the run before its file operation number `first` (from 0) and each `every`th after it, always
    in a new copy of the project; then train each copy to its end. Returns the projects."""
    done = []
    for count in itertools.count(first, every):
        run = copy_of(Project(folder).run(name), Path(f"{folder}-{count}"))
        hit, status = ended(fork(lambda run=run, count=count: die_at(count) or (list(train(run)) and 0)))
        if not hit:
            assert status == 0
            return done
        assert hit == signal.SIGKILL
        finish(run)
        done.append(str(run.project.folder))


def die_at(count: int) -> None:
    """Let this process be killed when it has done `count` file operations and begins another."""
    left = itertools.count(count, -1)

    def counted(operation: Callable) -> Callable:
        def do(*arguments, **options):
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return do

    for name in FILE_OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


def stop(folder: str, name: str) -> dict:
    """Stop `lorakit train` by either signal, and a trainer by two, each in a copy of the project, `<folder>-<case>`;
    then train the copies to their ends. Returns how each process ended and what its log said last."""
    ways = {
        "SIGINT": lambda run: stop_command(run, signal.SIGINT),
        "SIGTERM": lambda run: stop_command(run, signal.SIGTERM),
        "SIGHUP": lambda run: stop_command(run, signal.SIGHUP, closes=True),
        "twice": lambda run: ended(fork(lambda: signal_twice(run))),
    }
    found = {}
    for case, way in ways.items():
        run = copy_of(Project(folder).run(name), Path(f"{folder}-{case}"))
        hit, status = way(run)
        found[case] = [hit, status, type(list(events.read(run.log))[-1][1]).__name__]
        finish(run)
    return found


def stop_command(run: Run, number: int, closes: bool = False) -> tuple[int, int]:
    """`lorakit train`, signalled after its second step, when nobody reads what it says any more if that `closes`."""
    reader, writer = os.pipe()
    child = fork(
        lambda: (
            os.dup2(writer if closes else 1, 1)
            and os.close(reader)
            or cli.main(["train", str(run.project.folder), "--run", run.name])
        )
    )
    os.close(writer)
    while 2 not in events.steps(run.log):
        time.sleep(0.005)
    os.close(reader)
    os.kill(child, number)
    return ended(child)


def signal_twice(run: Run) -> None:
    """Train; SIGTERM comes twice after the third step."""
    for event in train(run):
        if isinstance(event, Stepped) and event.step == 3:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    torch.set_num_threads(1)
    verbs = {"often": often, "everywhere": everywhere, "stop": stop}
    arguments = json.loads(sys.argv[2])
    train_copy(arguments["folder"], arguments["name"])
    print(json.dumps(verbs[sys.argv[1]](**arguments)))
