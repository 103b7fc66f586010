#!/usr/bin/env python3
"""Run all that needs a GPU: the tests, then the benchmarks; write their records to benchmarks/results/.

python benchmarks/gpu.py
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from dformer.utils.errors import UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parent.parent
OPERATOR = ["--dtypes", "float32", "float16", "bfloat16", "--rounds", "20"]
# What is run, in this order, and the file in benchmarks/results/ that records it.
COMMANDS = {
    "tests_gpu.xml": ["-m", "pytest", "-m", "gpu", "-o", "junit_family=xunit1", "--junitxml"],
    "ms_deform_attn_cuda.json": ["benchmarks/ms_deform_attn.py", "--device", "cuda", *OPERATOR, "--json"],
    "model_gpu.json": ["benchmarks/model.py", "--device", "cuda", "--suite", "gpu", "--json"],
}


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the records")
    parser.add_argument("--dry-run", action="store_true", help="print the commands instead")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} finds no GPU")
    failed = []
    for record, arguments in COMMANDS.items():
        command = [sys.executable, *arguments, str(args.output.resolve() / record)]
        print(" ".join(command), flush=True)
        if not args.dry_run:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            failed += [record] if subprocess.run(command, cwd=ROOT, env=environment).returncode else []
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
