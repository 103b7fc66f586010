"""A report on the environment: versions, devices, operators, and what is missing.

dformer env
"""

import importlib.util
import os
import platform
import sys
from pathlib import Path

from dformer.utils.env import REQUIRED, cpu_model, git_state, installed
from dformer.utils.version import PACKAGE, __version__

ADDED_BY_TOOL = ("detectron2", "panopticapi-lite")


def _dformer_state() -> str:
    git = git_state()
    commit = f" (git {git['commit'][:9]}{', modified' if git['status'] else ''})" if git else ""
    return f"{__version__}{commit} in {PACKAGE}"


def detectron2_state() -> str | None:
    """Describe Detectron2 without importing it: version, who built it, and folder; None if it is missing."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    found = installed("detectron2") or ""
    builder = "pure Python build of dformer install-detectron2" if "+dformer" in found else "your own"
    return f"{found}, {builder}, in {Path(spec.origin).parent}"


def _torch_lines() -> list[tuple[str, str]]:
    """What requires PyTorch: CUDA, devices, operators."""
    import torch

    from dformer import ops

    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    lines = [("CUDA", f"{built}, {'usable' if torch.cuda.is_available() else 'no usable GPU here'}")]
    lines.append(("CPU", f"{cpu_model()}, {os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads"))
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        capability = f"compute capability {gpu.major}.{gpu.minor}"
        lines.append((f"GPU {index}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {capability}"))
    for kind in ("cpu", "cuda"):
        lines.append((f"ms_deform_attn, {kind}", f"{ops.implementation(kind)}: {ops.explanation(kind)}"))
    return lines


def report() -> str:
    """Format the whole report."""
    lines = [("dformer", _dformer_state()), ("Python", f"{platform.python_version()} at {sys.executable}")]
    lines += [(name, installed(name) or "missing") for name in REQUIRED if name != "detectron2"]
    lines.append(("detectron2", detectron2_state() or "missing"))
    if installed("torch"):
        try:
            lines += _torch_lines()
        except (ImportError, OSError) as error:  # a library that PyTorch links to may be missing
            lines.append(("PyTorch", f"does not load: {error}"))
    lines.append(("data sets", os.environ.get("DETECTRON2_DATASETS", "datasets (DETECTRON2_DATASETS is not set)")))
    missing = [name for name in REQUIRED if not installed(name)]
    for command, is_tool in (("pip install -e .", False), ("dformer install-detectron2", True)):
        if names := [name for name in missing if (name in ADDED_BY_TOOL) == is_tool]:
            lines.append(("to get", f"{', '.join(names)}: {command}"))
    width = max(len(name) for name, _ in lines)
    indent = "\n" + " " * (width + 2)
    return "\n".join(f"{name:{width}}  {text.replace(chr(10), indent)}" for name, text in lines)


def main() -> None:
    """Print the report."""
    print(report())


if __name__ == "__main__":
    main()
