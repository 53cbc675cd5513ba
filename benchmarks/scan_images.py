"""How long the first scan of a dataset takes, and later ones, which read only changed files.

    python benchmarks/scan_images.py                      # 1,000 images of 1000 x 1500 px, made in a temporary folder
    python benchmarks/scan_images.py --count 200 --folder /content/drive/MyDrive/scan     # on a slow disk, kept there

Each scan is a process of its own, as a trainer's or a notebook's is. Prints seconds, images a second, processor
seconds (they say more on a machine that others use too), peak memory and the seconds that imports took before, for a
first scan, a second one, and one after a hundredth of the images changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = {"jpg": 0.6, "png": 0.3, "webp": 0.1}  # ending -> share of the images
SIDES = (1000, 1500)  # px
SCAN = """
import json, resource, sys, time
from pathlib import Path
begun = time.perf_counter()
from lorakit.data import DataConfig
from lorakit.data.scan import scan
imported = time.perf_counter()
result = scan(DataConfig(), Path(sys.argv[1]))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"import": imported - begun, "scan": time.perf_counter() - imported, "samples": len(result.samples),
                  "cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * 1024 / 1e6}))
"""


def main() -> None:
    """Make the images, scan three times, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the images are made and stay; else they are removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        project = options.folder or Path(temporary)
        size = make(project / "dataset", options.count)
        print(f"{options.count} images of {SIDES[0]} x {SIDES[1]} px, {size / 1e6:.0f} MB, {os.cpu_count()} processors")
        print(f"{'':24}{'seconds':>9}{'a second':>10}{'CPU s':>8}{'peak MB':>9}{'imports s':>11}")
        (project / "cache" / ".looks.json").unlink(missing_ok=True)
        report("first scan", project)
        report("second scan", project)
        changed = sorted((project / "dataset").glob("*.*g"))[: max(1, options.count // 100)]
        for path in changed:
            path.write_bytes(path.read_bytes() + b"\0")
        report(f"after {len(changed)} changed", project)


def make(folder: Path, count: int) -> int:
    """Drawings with some noise, of which a PNG has about 2 MB and a JPEG 0.4; returns the bytes of all."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    grain = Image.effect_noise(SIDES, 12).convert("RGB")
    for number in range(count):
        draws = random.Random(number)
        ending = draws.choices([*KINDS], [*KINDS.values()])[0]
        path = folder / f"{number:04}.{ending}"
        if path.exists():
            continue
        image = Image.new("RGB", SIDES, tuple(draws.randbytes(3)))
        for _ in range(40):
            x, y, side = draws.randrange(SIDES[0]), draws.randrange(SIDES[1]), draws.randrange(20, 400)
            ImageDraw.Draw(image).ellipse((x, y, x + side, y + side), fill=tuple(draws.randbytes(3)))
        Image.blend(image, grain, 0.1).save(path, quality=92, compress_level=3, method=0)
        path.with_suffix(".txt").write_text(f"1girl, hat, drawing {number}")
    return sum(path.stat().st_size for path in folder.iterdir())


def report(what: str, project: Path) -> None:
    """Scan in a fresh process and print a row."""
    done = subprocess.run([sys.executable, "-c", SCAN, str(project)], check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    speed = figures["samples"] / figures["scan"]
    print(
        f"{what:24}{figures['scan']:9.2f}{speed:10.0f}{figures['cpu']:8.2f}{figures['memory']:9.0f}{figures['import']:11.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
