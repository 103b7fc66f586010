#!/usr/bin/env python3
"""Generate Shapes, train a small DFormer, evaluate it, and segment four unseen images.

Each step is a command, which is printed before it runs and can be run on its own.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

CONFIG = Path("configs/quick/dformer_shapes.yaml")
OUTPUT = Path("output/quickstart")
HEADLINE = ("PQ", "PQ_things", "PQ_stuff", "AP", "mIoU")


def step(number: int, what: str, command: list[str]) -> None:
    """Print a command and run it; exit with its exit code if it fails."""
    print(f"\n[{number}/3] {what}\n$ python {shlex.join(command)}\n", flush=True)
    code = subprocess.run([sys.executable, *command]).returncode
    if code:
        sys.exit(code)


def main() -> None:
    os.chdir(Path(__file__).resolve().parent.parent)
    data = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    unseen = [str(data / "shapes" / "val" / f"{1000000 + i:012d}.jpg") for i in range(1, 5)]
    pictures = OUTPUT / "pictures"

    step(1, "generate 2,000 training and 100 validation images", ["datasets/shapes.py", "--root", str(data)])
    train = ["tools/train_net.py", "--overwrite", "--config-file", str(CONFIG), "OUTPUT_DIR", str(OUTPUT)]
    step(2, "train a small DFormer from scratch and evaluate it on the validation images", train)
    weights = str(OUTPUT / "model_final.pth")
    demo = ["tools/demo.py", "--weights", weights, "--input", *unseen, "--output", str(pictures)]
    step(3, "segment four unseen images", demo)

    results = json.loads((OUTPUT / "results.json").read_text())
    rows = [[name, "-" if results.get(name) is None else f"{results[name]:.1f}"] for name in HEADLINE]
    print(f"\n{tabulate(rows, headers=['metric', 'on 100 unseen images'], disable_numparse=True)}")
    print(f"\ntrained in {results['train_seconds'] / 60:.1f} minutes\nresults:  {OUTPUT / 'results.json'}")
    print(f"pictures: {pictures}{os.sep}")


if __name__ == "__main__":
    main()
