"""Compile the kernels of csrc/ into libraries: at install, by command, or at first use into the user's cache.

python -m dformer.ops.build [cpu] [cuda]

A library depends on neither Python nor PyTorch: one build serves any version of them, and needs no PyTorch to be made.
This module imports nothing but the standard library, for setup.py. A library's name holds what it does depend on:
`ms_deform_attn-<kind>-<platform>-<hash of sources and flags>.so`, where kind is `cpu` or `cuda<major>-<architectures>`.

Environment variables:
    DFORMER_BUILD_OPS     0: build nothing; cpu; cuda: CPU and CUDA, even without a GPU. Not set: CPU, and CUDA where
                          there are a suitable nvcc and a GPU or a TORCH_CUDA_ARCH_LIST.
    TORCH_CUDA_ARCH_LIST  architectures to build for, such as "8.0;9.0+PTX". Not set: the GPUs of this machine.
    CXX, CUDA_HOME        the C++ compiler, the folder of the CUDA toolkit.
    XDG_CACHE_HOME        the cache is dformer/ops in it; not set: in ~/.cache.
"""

import argparse
import contextlib
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
LIBRARIES = "lib"  # folder in the package: beside the modules, Python would take the libraries for modules
# The first is compiled, the others are included.
SOURCES = {"cpu": ("cpu.cpp", "cpu.h", "cpu_kernels.h", "types.h"), "cuda": ("cuda.cu", "cuda_points.h", "types.h")}
FLAGS = {
    "cpu": shlex.split("-O3 -std=c++17 -shared -fPIC -fopenmp -fno-math-errno -fvisibility=hidden -Wno-psabi"),
    "cuda": shlex.split("-O3 -std=c++17 -shared -cudart shared --threads 0 -Xcompiler -fPIC"),
}
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0+PTX")  # without a GPU and the variable
KINDS = {"": None, "0": (), "cpu": ("cpu",), "cuda": ("cpu", "cuda")}  # DFORMER_BUILD_OPS -> what it requests


class BuildError(Exception):
    """Explain why there is no library: the first line in short, the others in full."""


def cache() -> Path:
    """Return the folder of the libraries built at first use."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "dformer" / "ops"


def requested_kinds() -> tuple[str, ...] | None:
    """Return the kinds that DFORMER_BUILD_OPS requests; None where it is not set."""
    choice = os.environ.get("DFORMER_BUILD_OPS", "").strip().lower()
    if choice not in KINDS:
        raise BuildError(f"DFORMER_BUILD_OPS is {choice!r}; it may be 0, cpu or cuda")
    return KINDS[choice]


def suffix(kind: str) -> str:
    """Return the end of the names of libraries that match these sources and this platform."""
    sources = [(PACKAGE / "csrc" / name).read_bytes() for name in SOURCES[kind]]
    digest = hashlib.sha256(b"".join([repr(FLAGS[kind]).encode(), *sources])).hexdigest()
    return f"-{platform.system()}-{platform.machine()}-{digest[:12]}.so".lower()


def libraries(kind: str) -> list[Path]:
    """List the libraries that match these sources, those of the package first."""
    folders = (PACKAGE / LIBRARIES, cache())
    return [path for folder in folders for path in sorted(folder.glob(f"ms_deform_attn-{kind}*{suffix(kind)}"))]


def run(command: list[str]) -> str:
    """Return what `command` prints; raise a `BuildError` that contains it if the command fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        raise BuildError(
            f"{command[0]} failed with status {done.returncode}\n{shlex.join(command)}\n{done.stdout.strip()}"
        )
    return done.stdout


def _cpu_compiler() -> list[str]:
    command = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "c++", "clang++")), None)
    if not command:
        raise BuildError("there is no C++ compiler: install one (Debian, Ubuntu: apt install g++) or name it in CXX")
    return shlex.split(command)


def torch_cuda() -> str | None:
    """Return the version of CUDA that PyTorch is built for; None without CUDA or PyTorch."""
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch.version.cuda


def nvcc() -> tuple[str, str]:
    """Find the command of the CUDA compiler and its version, of the major version that PyTorch is built for."""
    home = [os.path.join(os.environ["CUDA_HOME"], "bin")] if os.environ.get("CUDA_HOME") else []
    folders = [*home, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    found = shutil.which("nvcc", path=os.pathsep.join(folders))
    if not found:
        raise BuildError("there is no CUDA compiler: install the CUDA toolkit, or name its folder in CUDA_HOME")
    command = os.path.realpath(found)  # a link's folder is not the toolkit's
    release = re.search(r"release (\d+\.\d+)", run([command, "--version"]))
    if not release:
        raise BuildError(f"{command} --version names no release")
    version, expected = release[1], torch_cuda()
    if expected and expected.partition(".")[0] != version.partition(".")[0]:
        raise BuildError(f"{command} is of CUDA {version}, PyTorch of CUDA {expected}: the first numbers must agree")
    return command, version


def architectures() -> list[str]:
    """List the architectures to build for, in PyTorch's notation: those of the variable, or of the GPUs, or none."""
    listed = re.split(r"[\s;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
    if listed != [""]:
        if wrong := [name for name in listed if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name)]:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {' '.join(wrong)}; write numbers, such as 8.0;9.0+PTX")
        return listed
    if torch_cuda() is None:
        return []
    import torch

    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return [f"{major}.{minor}" for major, minor in sorted(found)]


def command(kind: str) -> tuple[list[str], str]:
    """Return the command that compiles a kind, without the output, and the library's name."""
    source = str(PACKAGE / "csrc" / SOURCES[kind][0])
    if kind == "cpu":
        return [*_cpu_compiler(), *FLAGS[kind], source], f"ms_deform_attn-cpu{suffix(kind)}"
    compiler, version = nvcc()
    targets, name = [], f"ms_deform_attn-cuda{version.partition('.')[0]}"
    for architecture in architectures() or ARCHITECTURES:
        number = architecture.removesuffix("+PTX").replace(".", "")
        codes = [f"sm_{number}"] + [f"compute_{number}"] * architecture.endswith("+PTX")
        targets.append(f"-gencode=arch=compute_{number},code=[{','.join(codes)}]")
        name += f"-sm_{number}"
    return [compiler, *FLAGS[kind], *targets, source], name + suffix(kind)


def compile_library(kind: str, folder: Path) -> Path:
    """Build a kind's library in `folder` and return its path; if that fails, raise and leave nothing behind."""
    if platform.system() != "Linux":
        raise BuildError(f"the kernels are for Linux; this is {platform.system()}")
    parts, name = command(kind)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        run([*parts, "-o", str(Path(temporary) / name)])
        os.replace(Path(temporary) / name, folder / name)
    return folder / name


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a lock that one process has at a time, and that ends with the process."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def default_kinds() -> tuple[str, ...]:
    """Return what to build where nobody names it: what is requested, or what this machine can use."""
    if (requested := requested_kinds()) is not None:
        return requested
    return ("cpu", "cuda") if torch_cuda() and architectures() else ("cpu",)


def install(folder: Path, kinds: tuple[str, ...] = ()) -> list[str]:
    """Build `kinds`, by default what this machine can use, in `folder`; return a line for each. Never raises."""
    try:
        kinds = kinds or default_kinds()
    except BuildError as error:
        return [str(error)]
    lines = []
    for kind in kinds:
        try:
            lines.append(f"built {compile_library(kind, folder)}")
        except (BuildError, OSError) as error:
            lines.append(f"no {kind} kernels: {error}")
    return lines


def main() -> int:
    """Build libraries in the cache; return 1 if anything failed, else 0."""
    parser = argparse.ArgumentParser(description="Compile the kernels of multi-scale deformable attention.")
    parser.add_argument("kinds", nargs="*", metavar="kind", help="cpu or cuda; default: what this machine can use")
    kinds = parser.parse_args().kinds
    if unknown := set(kinds) - set(SOURCES):
        parser.error(f"{' '.join(unknown)}: neither cpu nor cuda")
    try:
        with lock(cache()):
            lines = install(cache(), tuple(kinds))
    except OSError as error:
        lines = [str(error)]
    for line in lines:
        print(line, file=sys.stdout if line.startswith("built ") else sys.stderr)
    return int(not all(line.startswith("built ") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
