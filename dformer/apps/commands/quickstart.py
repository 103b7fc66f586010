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

from dformer.apps.commands.arguments import command_parser
from dformer.data.prepare import default_root

CONFIG = "configs/quick/dformer_shapes.yaml"
OUTPUT = Path("output/quickstart")
HEADLINE = ("PQ", "PQ_things", "PQ_stuff", "AP", "mIoU")


def step(number: int, what: str, command: list[str]) -> None:
    """Print a command and run it; exit with its exit code if it fails."""
    print(f"\n[{number}/3] {what}\n$ dformer {shlex.join(command)}\n", flush=True)
    code = subprocess.run([sys.executable, "-m", "dformer", *command]).returncode
    if code:
        sys.exit(code)


def main() -> None:
    command_parser(__doc__).parse_args()
    data = Path(default_root())
    unseen = [str(data / "shapes" / "val" / f"{1000000 + i:012d}.jpg") for i in range(1, 5)]
    pictures = OUTPUT / "pictures"

    step(1, "generate 2,000 training and 100 validation images", ["shapes", "--root", str(data)])
    train = ["train", "--overwrite", "--config-file", CONFIG, "OUTPUT_DIR", str(OUTPUT)]
    step(2, "train a small DFormer from scratch and evaluate it on the validation images", train)
    weights = str(OUTPUT / "model_final.pth")
    demo = ["demo", "--weights", weights, "--input", *unseen, "--output", str(pictures)]
    step(3, "segment four unseen images", demo)

    results = json.loads((OUTPUT / "results.json").read_text())
    rows = [[name, "-" if results.get(name) is None else f"{results[name]:.1f}"] for name in HEADLINE]
    print(f"\n{tabulate(rows, headers=['metric', 'on 100 unseen images'], disable_numparse=True)}")
    print(f"\ntrained in {results['train_seconds'] / 60:.1f} minutes\nresults:  {OUTPUT / 'results.json'}")
    print(f"pictures: {pictures}{os.sep}")
