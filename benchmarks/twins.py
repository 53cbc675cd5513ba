"""Twin runs: a family trains the same steps twice, and every loss, gradient norm and weight must be equal in all bits.

    python benchmarks/twins.py --family sdxl                 # on a GPU, 50 steps at true size with random weights
    python benchmarks/twins.py --family sdxl --dry --steps 3  # a tiny model on the CPU

Each twin is a process of its own. Prints seconds a step of both and the first step that differs; ends with status 1
when one does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from memory import run_child, settings  # noqa: E402
from true_size import ROOT  # noqa: E402

PX = {"sd15": 512, "sdxl": 1024, "anima": 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=PX, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--base", action="append", default=[], metavar="FAMILY=SOURCE", help="a base to use instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(not are_equal(options, Path(scratch)))


def are_equal(options: argparse.Namespace, folder: Path) -> bool:
    """Both twins; True when nothing differs."""
    precision = "fp32" if options.dry else "auto"
    config = settings(options, folder, options.family, PX[options.family], steps=options.steps, precision=precision)
    config["data"] |= {"cache_latents": True, "cache_text": True}
    config["memory"]["gradient_checkpointing"] = options.family != "sd15"
    twins = [run_child(options, folder=str(folder / str(number)), settings=config, cap=0.0) for number in (1, 2)]
    for twin in twins:
        if "failed" in twin:
            print(f"{options.family}: {twin['failed']}")
            return False
    logs = [list(zip(twin["losses"], twin["norms"], strict=True)) for twin in twins]
    differing = [step for step, (one, other) in enumerate(zip(*logs, strict=True), 1) if one != other]
    same = not differing and twins[0]["digest"] == twins[1]["digest"]
    verdict = f"DIFFER from step {differing[0]} on" if differing else "equal in all bits" if same else "end DIFFERENTLY"
    print(f"{options.family}, {options.steps} steps twice: {verdict}")
    print(f"seconds a step: {twins[0]['step']:.3f} and {twins[1]['step']:.3f}")
    return same


if __name__ == "__main__":
    sys.path += [str(ROOT), str(ROOT / "tests" / "builders")]
    main()
