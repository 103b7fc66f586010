"""Compiles the kernels of csrc/ into libraries: at install, by command, or at first use into the user's cache.

python -m dformer.ops.build [cpu] [cuda]

A library depends on neither Python nor PyTorch: one build serves any version of them, and needs no PyTorch to be made.
This module imports nothing but the standard library, for setup.py. A library's name holds what it does depend on:
`ms_deform_attn-<kind>-<platform>-<hash of sources and flags>.so`, where kind is `cpu` or `cuda<major>-<architectures>`.

Environment variables:
    DFORMER_BUILD_OPS     0: build nothing; cpu; cuda: CPU and CUDA, also where no GPU is seen. Not set: CPU, and CUDA
                          where there are a fitting nvcc and a GPU or a TORCH_CUDA_ARCH_LIST.
    TORCH_CUDA_ARCH_LIST  what to build for, such as "8.0;9.0+PTX". Not set: the GPUs of this machine.
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
SOURCES = {"cpu": ("cpu.cpp", "cpu.h", "cpu_kernels.h"), "cuda": ("cuda.cu",)}  # the first includes the others
FLAGS = {
    "cpu": (
        "-O3",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-fopenmp",
        "-fno-math-errno",
        "-fvisibility=hidden",
        "-Wno-psabi",
    ),
    "cuda": ("-O3", "-std=c++17", "-shared", "-cudart", "shared", "--threads", "0", "-Xcompiler", "-fPIC"),
}
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0+PTX")  # where no GPU says what to build for, and no variable


class BuildError(Exception):
    """Why a library is not there; the first line says it in short, the others tell in full."""


def cache() -> Path:
    """Folder of the libraries built at first use."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "dformer" / "ops"


def wanted() -> tuple[str, ...] | None:
    """The kinds that DFORMER_BUILD_OPS asks for; None where it is not set."""
    choice = os.environ.get("DFORMER_BUILD_OPS", "").strip().lower()
    kinds = {"": None, "0": (), "cpu": ("cpu",), "cuda": ("cpu", "cuda")}
    if choice not in kinds:
        raise BuildError(f"DFORMER_BUILD_OPS is {choice!r}; it may be 0, cpu or cuda")
    return kinds[choice]


def suffix(kind: str) -> str:
    """How the names of libraries end that fit these sources and this platform."""
    digest = hashlib.sha256(repr(FLAGS[kind]).encode())
    for name in SOURCES[kind]:
        digest.update((PACKAGE / "csrc" / name).read_bytes())
    return f"-{platform.system()}-{platform.machine()}-{digest.hexdigest()[:12]}.so".lower()


def libraries(kind: str) -> list[Path]:
    """The libraries there are that fit these sources, those of the package first."""
    return [
        path
        for folder in (PACKAGE / LIBRARIES, cache())
        for path in sorted(folder.glob(f"ms_deform_attn-{kind}*{suffix(kind)}"))
    ]


def strangers(kind: str) -> list[Path]:
    """Libraries in the package that were built from other sources or for another platform."""
    return sorted(set((PACKAGE / LIBRARIES).glob(f"ms_deform_attn-{kind}*.so")) - set(libraries(kind)))


def run(command: list[str]) -> str:
    """What `command` prints; a `BuildError` with all of it where it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        raise BuildError(
            f"{command[0]} failed with status {done.returncode}\n{shlex.join(command)}\n{done.stdout.strip()}"
        )
    return done.stdout


def cpu_compiler() -> list[str]:
    """Command of the C++ compiler."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "c++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise BuildError("there is no C++ compiler: install one (Debian, Ubuntu: apt install g++) or name it in CXX")


def torch_cuda() -> str | None:
    """The version of CUDA that PyTorch is built for; None where it is built for none or cannot be imported."""
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch.version.cuda


def nvcc() -> tuple[str, str]:
    """Command of the CUDA compiler, and its version; it must be of the major version that PyTorch is built for."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [shutil.which("nvcc", path=os.path.join(home, "bin")) for home in homes if home]
    places += [shutil.which("nvcc"), shutil.which("nvcc", path="/usr/local/cuda/bin")]
    found = next(filter(None, places), None)
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
    """What to build for, in PyTorch's notation: TORCH_CUDA_ARCH_LIST, or the GPUs of this machine, or none."""
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
    """Command that compiles a kind, all but the output; and the library's name."""
    source = str(PACKAGE / "csrc" / SOURCES[kind][0])
    if kind == "cpu":
        return [*cpu_compiler(), *FLAGS[kind], source], f"ms_deform_attn-cpu{suffix(kind)}"
    compiler, version = nvcc()
    targets, name = [], f"ms_deform_attn-cuda{version.partition('.')[0]}"
    for architecture in architectures() or ARCHITECTURES:
        number = architecture.removesuffix("+PTX").replace(".", "")
        codes = [f"sm_{number}"] + [f"compute_{number}"] * architecture.endswith("+PTX")
        targets.append(f"-gencode=arch=compute_{number},code=[{','.join(codes)}]")
        name += f"-sm_{number}"
    return [compiler, *FLAGS[kind], *targets, source], name + suffix(kind)


def compile_library(kind: str, folder: Path) -> Path:
    """Compiles a kind into `folder`. `BuildError` where that fails; then nothing is left behind."""
    if platform.system() != "Linux":
        raise BuildError(f"the kernels are for Linux; this is {platform.system()}")
    parts, name = command(kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            run([*parts, "-o", str(Path(temporary) / name)])
            os.replace(Path(temporary) / name, folder / name)
    except OSError as error:
        raise BuildError(f"{folder} cannot be written to: {error}") from error
    return folder / name


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Held by one process at a time; whoever dies lets go of it."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise BuildError(f"{folder} cannot be written to: {error}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def default_kinds() -> tuple[str, ...]:
    """What to build where nobody says it: what this machine can use."""
    kinds = wanted()
    if kinds is not None:
        return kinds
    if torch_cuda() is None or not architectures():
        return ("cpu",)
    return ("cpu", "cuda")


def install(folder: Path) -> list[str]:
    """Compiles what this machine allows into `folder`, for setup.py; what came of it, a text each. Never raises."""
    told = []
    try:
        kinds = default_kinds()
    except BuildError as error:
        return [str(error)]
    for kind in kinds:
        try:
            told.append(f"built {compile_library(kind, folder)}")
        except BuildError as error:
            told.append(f"no {kind} kernels: {error}")
    return told


def main() -> int:
    """Compiles into the cache; the exit status is 1 where anything asked for failed."""
    parser = argparse.ArgumentParser(description="Compile the kernels of multi-scale deformable attention.")
    parser.add_argument("kinds", nargs="*", metavar="kind", help="cpu or cuda; default: what this machine can use")
    try:
        kinds = parser.parse_args().kinds or default_kinds()
    except BuildError as error:
        parser.error(str(error))
    if unknown := set(kinds) - set(SOURCES):
        parser.error(f"{' '.join(unknown)}: neither cpu nor cuda")
    failed = False
    for kind in kinds:
        try:
            with lock(cache()):
                print(f"built {compile_library(kind, cache())}")
        except BuildError as error:
            failed = True
            print(f"no {kind} kernels: {error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
