"""Trainers and probes as forks of a process that has imported everything, instead of interpreters that start anew.

A fresh interpreter needs seconds to import torch and diffusers. What is promised of processes (their own session, the
lock that is handed over as standard input, signals, exit status) is the same for a fork.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from multiprocessing.reduction import DupFd
from types import SimpleNamespace

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "lorakit.training.loop",
        "lorakit.training.probe",
        "lorakit.cli",
        "lorakit.models.sd15",
        "diffusers.models.unets.unet_2d_condition",
        "diffusers.models.autoencoders.autoencoder_kl",
        "transformers.models.clip.modeling_clip",
        "peft",
    ]
)


class Forked:
    """As much of subprocess.Popen as lorakit uses, for `python … -m MODULE ARGUMENTS`."""

    def __init__(self, command, *, stdin, stdout, stderr, env, text=False, start_new_session=True):
        at = command.index("-m")
        read, write = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        given = {subprocess.PIPE: write, subprocess.DEVNULL: null}
        streams = [stream if isinstance(stream, int) else stream.fileno() for stream in (stdin, stdout, stderr)]
        numbers = [given.get(number, number) for number in streams]
        self._process = SERVER.Process(
            target=_run, args=(command[at + 1], command[at + 2 :], dict(env), _Streams(numbers)), daemon=True
        )
        self._process.start()
        self.pid = self._process.pid
        self.stdout = open(read, encoding="utf-8" if text else None)
        for number in (write, null):
            os.close(number)

    @property
    def returncode(self) -> int | None:
        """The exit status; minus the signal's number for one that was killed; None while it lives."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


class _Streams:
    """File descriptors for another process's standard streams, the same open files there."""

    def __init__(self, numbers: list[int]):
        self.numbers = numbers

    def __reduce__(self):
        return _detached, ([DupFd(number) for number in self.numbers],)


def _detached(duplicates: list) -> list[int]:
    return [duplicate.detach() for duplicate in duplicates]


def _run(module: str, arguments: list[str], environment: dict[str, str], numbers: list[int]) -> None:
    os.setsid()
    for target, number in enumerate(numbers):
        os.dup2(number, target)
        os.close(number)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False) for number in (1, 2)
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def subprocess_with_forks() -> SimpleNamespace:
    """What a module knows as `subprocess`, with Forked in place of Popen for `python -m`."""

    def popen(command, **options):
        return (Forked if "-m" in command else subprocess.Popen)(command, **options)

    return SimpleNamespace(**{**vars(subprocess), "Popen": popen})
