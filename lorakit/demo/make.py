"""Makes the demo's artefacts again: `python -m lorakit.demo.make vae|base|tagger|dataset [--work FOLDER]`, in this
order."""

import argparse
import importlib


def main():
    """Runs one of the makers; each goes on from its checkpoint in the work folder when it was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("vae", "base", "tagger", "dataset"))
    parser.add_argument("--work", default="demo-work", help="folder for pools of images and checkpoints")
    options = parser.parse_args()
    module = "draw_dataset" if options.part == "dataset" else f"train_{options.part}"
    importlib.import_module(f"lorakit.demo.{module}").train(options.work)


if __name__ == "__main__":
    main()
