"""Everything that needs a GPU (`make gpu`): part by part, in at most ten minutes; the next call does what is left.

    python benchmarks/gpu.py                          # what is not done yet, as far as ten minutes go
    python benchmarks/gpu.py --minutes 30 --only twins --only "step sd15"
    python benchmarks/gpu.py --dry                    # tiny models on the CPU: shows that every part works

Each part is a process of its own. What it printed and whether it passed is kept in build/gpu/results.json as soon as it
ends, with the commit, the GPU and the version of torch; a part that passed for these is not run again. The page
build/gpu/report.md is written from that file. Ends with status 1 when a part failed, 3 when parts are left for the next
call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gpu"
BENCHMARKS = "benchmarks"


@dataclass(frozen=True)
class Part:
    """A command of `make gpu`, without the Python that runs it.

    seconds    what it usually takes on an H200; it is not begun when less is left, and ended after three times as many
    dry        what takes the place of `command` without a GPU
    """

    name: str
    seconds: int
    command: tuple[str, ...]
    dry: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """How a part ended. `where` is the commit, the GPU and torch; `status` the process's, -1 when it ran too long."""

    name: str
    where: str
    status: int
    seconds: float
    output: list[str]


def script(name: str, *arguments: str) -> tuple[str, ...]:
    return (f"{BENCHMARKS}/{name}.py", *arguments)


def parts() -> Iterator[Part]:
    """In the order of their worth: a machine may be there for a few minutes only."""
    yield Part(
        "tests",
        90,
        ("-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu"),
        ("-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", "--collect-only"),
    )
    for family in ("sd15", "sdxl", "anima"):
        yield Part(
            f"twins {family}",
            60,
            script("twins", "--family", family),
            script("twins", "--family", family, "--dry", "--steps", "3"),
        )
    yield Part(
        "step sd15",
        60,
        script("train_step", "--device", "cuda", "--precision", "bf16", "--model", "sd15", "--px", "512"),
        script("train_step", "--steps", "3", "--rounds", "1"),
    )
    for case in ("sd15-6", "sdxl-8", "anima-8", "anima-12", "anima-16"):
        yield Part(f"memory {case}", 60, script("memory", "--case", case), script("memory", "--case", case, "--dry"))
    yield Part(
        "fp16 anima",
        120,
        script("memory", "--case", "none", "--fp16-steps", "300"),
        script("memory", "--case", "none", "--fp16-steps", "3", "--dry"),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="no part is begun that would take longer than this")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="this part, also when it is done")
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU")
    options = parser.parse_args()
    known = list(parts())
    if unknown := set(options.only) - {part.name for part in known}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(part.name for part in known)}")
    chosen = [part for part in known if part.name in options.only or not options.only]
    return run(chosen, FOLDER, where(options.dry), 60 * options.minutes, dry=options.dry, again=bool(options.only))


def where(dry: bool) -> str:
    """The commit, the GPU and the version of torch that results are of."""
    import torch

    if not dry and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device: run this on a machine with an NVIDIA GPU, or with --dry.")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    gpu = "dry run on the CPU" if dry else torch.cuda.get_device_name()
    return f"{commit.stdout.strip() or 'no commit'}, {gpu}, torch {torch.__version__}"


def run(chosen: list[Part], folder: Path, where: str, budget: float, *, dry: bool, again: bool) -> int:
    """Run what has not passed yet, within `budget` seconds; returns the exit status."""
    begun, left = time.monotonic(), []
    results = read(folder)
    for part in chosen:
        done = results.get(part.name)
        if done and done.where == where and done.status == 0 and not again:
            print(f"{part.name}: passed before, in {done.seconds:.0f} s", flush=True)
            continue
        remaining = budget - (time.monotonic() - begun)
        if part.seconds > remaining:
            left.append(part.name)
            continue
        print(f"{part.name} …", flush=True)
        result = run_part(part, where, min(remaining, 3 * part.seconds), dry=dry)
        results[part.name] = result
        write(folder, results)
        print(f"{part.name}: {verdict(result)} in {result.seconds:.0f} s", flush=True)
    failed = [part.name for part in chosen if part.name in results and results[part.name].status]
    print(f"The page is {folder / 'report.md'}.")
    if left:
        print(f"Left for the next call: {', '.join(left)}.")
    return 1 if failed else 3 if left else 0


def run_part(part: Part, where: str, most: float, *, dry: bool) -> Result:
    """One part in a process of its own, ended after `most` seconds; what it prints is shown and kept."""
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *(part.dry if dry else part.command)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=most,
        )
        status, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        status, text = -1, (expired.stdout or b"").decode(errors="replace")
    print(text, flush=True)
    return Result(part.name, where, status, time.monotonic() - begun, text.splitlines())


def verdict(result: Result) -> str:
    return {0: "passed", -1: "ran too long"}.get(result.status, f"FAILED (status {result.status})")


def read(folder: Path) -> dict[str, Result]:
    """Results of earlier calls by the part's name."""
    file = folder / "results.json"
    return {item["name"]: Result(**item) for item in json.loads(file.read_text())} if file.exists() else {}


def write(folder: Path, results: dict[str, Result]) -> None:
    """The results and the page made of them, each replaced at once."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.json": json.dumps([asdict(result) for result in results.values()], indent=1),
        "report.md": page(results),
    }
    for name, text in texts.items():
        (folder / f"{name}.part").write_text(text, encoding="utf-8")
        (folder / f"{name}.part").replace(folder / name)


def page(results: dict[str, Result]) -> str:
    """Markdown: a table of all parts, then what each printed."""
    lines = ["# What was measured on a GPU", "", "| part | result | s | where |", "|---|---|---|---|"]
    lines += [f"| {r.name} | {verdict(r)} | {r.seconds:.0f} | {r.where} |" for r in results.values()]
    for result in results.values():
        lines += ["", f"## {result.name}", "", "```", *result.output, "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
