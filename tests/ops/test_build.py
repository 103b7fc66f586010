"""Building never fails an install: with any or no compiler the results are right, and the reason is given."""

import itertools
import os
import pkgutil
import shutil
import stat
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dformer.ops import build, native
from tests import ROOT

VARIABLES = ("DFORMER_OPS", "DFORMER_BUILD_OPS", "TORCH_CUDA_ARCH_LIST", "CXX", "CUDA_HOME")

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package without libraries and an empty cache, in a folder that is returned."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(build.PACKAGE / "csrc", tmp_path / "package" / "csrc")
    monkeypatch.setattr(build, "PACKAGE", tmp_path / "package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def state(kind: str = "cpu") -> native.State:
    return native.state.__wrapped__(kind, None)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_first_use_builds_into_the_cache_once(fresh, monkeypatch):
    counting = script(fresh / "counting", f'echo "$@" >> {fresh}/calls; exec g++ "$@"')
    monkeypatch.setenv("CXX", counting)
    with ThreadPoolExecutor(3) as pool:
        states = list(pool.map(state, ["cpu"] * 3))
    assert all(s.library for s in states) and len((fresh / "calls").read_text().splitlines()) == 1
    (library,) = (fresh / "cache").rglob("*.so")
    assert states[0].explanation.endswith(str(library))
    assert set(library.parent.iterdir()) == {library, library.parent / "lock"}


@needs_compiler
def test_command(fresh, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["build", "cpu"])
    assert build.main() == 0
    (library,) = (fresh / "cache").rglob("*.so")
    assert capsys.readouterr().out == f"built {library}\n"
    monkeypatch.setenv("CXX", script(fresh / "broken", "echo 'no such flag'; exit 1"))
    assert build.main() == 1
    assert "no such flag" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["build", "gpu"])
    with pytest.raises(SystemExit):
        build.main()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CXX": "{folder}/broken"}, "{folder}/broken failed with status 3"),
        ({"CXX": "{folder}/missing"}, "{folder}/missing"),
        ({"PATH": "{folder}"}, "CXX"),
        ({"DFORMER_BUILD_OPS": "0"}, "DFORMER_BUILD_OPS=0"),
        ({"DFORMER_BUILD_OPS": "gpu"}, "DFORMER_BUILD_OPS"),
        ({"XDG_CACHE_HOME": "{folder}/broken"}, "{folder}/broken/dformer/ops"),
        ({"DFORMER_OPS": "reference"}, "DFORMER_OPS=reference"),
        ({"DFORMER_OPS": "fast"}, "DFORMER_OPS is"),
    ],
)
def test_without_a_library_the_reason_is_given(fresh, monkeypatch, variables, reason):
    script(fresh / "broken", "echo 'cpu.cpp:1: internal compiler error'; exit 3")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(folder=fresh))
    found = state()
    assert found.library is None and reason.format(folder=fresh) in found.explanation.split("\n")[0]
    if "status" in reason:
        assert "cpu.cpp:1: internal compiler error" in found.explanation and "-fopenmp" in found.explanation
    assert not list(fresh.rglob("*.so")) and not list(fresh.rglob("tmp*"))


@needs_compiler
def test_libraries_that_do_not_work_are_named_and_built_anew(fresh, monkeypatch):
    (build.PACKAGE / "lib").mkdir()
    (build.PACKAGE / "lib" / f"ms_deform_attn-cpu{build.suffix('cpu')}").touch()
    with (build.PACKAGE / "csrc" / "cpu.h").open("a") as header:
        header.write("// changed\n")
    assert not build.libraries("cpu")
    no_library = build.PACKAGE / "lib" / f"ms_deform_attn-cpu{build.suffix('cpu')}"
    no_library.write_text("cut off")
    monkeypatch.setenv("DFORMER_BUILD_OPS", "0")
    assert f"{no_library}: " in state().explanation
    monkeypatch.delenv("DFORMER_BUILD_OPS")
    found = state()
    assert found.library and str(fresh / "cache") in found.explanation


def test_cuda_is_built_where_it_can_be_used(fresh, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert build.default_kinds() == ("cpu",)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 6)][index])
    assert build.default_kinds() == ("cpu", "cuda") and build.architectures() == ["8.6", "9.0"]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert build.default_kinds() == ("cpu",)
    for choice, kinds in (("0", ()), ("cpu", ("cpu",)), ("cuda", ("cpu", "cuda"))):
        monkeypatch.setenv("DFORMER_BUILD_OPS", choice)
        assert build.default_kinds() == kinds


def test_cuda_compiler(fresh, monkeypatch):
    (fresh / "toolkit" / "bin").mkdir(parents=True)
    compiler = script(fresh / "toolkit" / "bin" / "nvcc", "echo 'Cuda compilation tools, release 12.4, V12.4.131'")
    (fresh / "link").symlink_to(fresh / "toolkit")
    monkeypatch.setenv("CUDA_HOME", str(fresh / "link"))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a 12.0+PTX")
    command, name = build.command("cuda")
    assert command[0] == compiler
    targets = [part for part in command if part.startswith("-gencode")]
    assert targets == [
        "-gencode=arch=compute_80,code=[sm_80]",
        "-gencode=arch=compute_90a,code=[sm_90a]",
        "-gencode=arch=compute_120,code=[sm_120,compute_120]",
    ]
    assert name.startswith("ms_deform_attn-cuda12-sm_80-sm_90a-sm_120-")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(build.BuildError, match="TORCH_CUDA_ARCH_LIST.*Hopper"):
        build.command("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(build.BuildError, match=r"12\.4.* 13\.0"):
        build.command("cuda")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(fresh))
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        with pytest.raises(build.BuildError, match="CUDA_HOME"):
            build.command("cuda")


@needs_nvcc
def test_cuda_sources_compile(fresh, monkeypatch):
    """For sm_80, sm_90 and the newest that nvcc knows; and a library for another CUDA is not taken."""
    numbers = [line.removeprefix("compute_") for line in build.run(["nvcc", "--list-gpu-arch"]).split()]
    newest = max((n for n in numbers if n.isdigit()), key=int)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", f"8.0 9.0 {newest[:-1]}.{newest[-1]}")
    has_cuda = torch.version.cuda
    monkeypatch.setattr(torch.version, "cuda", None)  # so that any nvcc fits
    library = build.compile_library("cuda", fresh / "built")
    assert f"-sm_80-sm_90-sm_{newest}-" in library.name
    if not has_cuda:
        pytest.skip("this PyTorch has no CUDA to load the library with")
    monkeypatch.setattr(torch.version, "cuda", "7.5")
    with pytest.raises(OSError, match=r"7\.5"):
        native.open_library("cuda", None, library)


def wheel(folder: Path, **variables: str) -> tuple[Path, str]:
    """Builds a wheel of a copy of the sources, as pip does; returns it and what was printed."""
    number = len(list(folder.glob("wheels*")))
    copy, target = folder / f"source{number}", folder / f"wheels{number}"
    shutil.copytree(ROOT / "dformer", copy / "dformer", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(ROOT / "configs", copy / "configs")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    hook = f"from setuptools import build_meta; build_meta.build_wheel({str(target)!r})"
    done = subprocess.run([sys.executable, "-c", hook], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built, done.stdout + done.stderr


USE = """
import torch
from dformer.ops import implementation, ms_deform_attn
point = torch.full((1, 1, 1, 1, 1, 2), 0.5)
output = ms_deform_attn(torch.ones(1, 4, 1, 8), [(2, 2)], point, torch.ones(point.shape[:-1]))
print(implementation(), output.sum().item())
"""


@needs_compiler
@pytest.mark.slow
def test_wheels(tmp_path):
    """Without PyTorch, as under build isolation, kernels are built all the same; a broken compiler only costs speed."""
    (tmp_path / "none" / "torch").mkdir(parents=True)
    (tmp_path / "none" / "torch" / "__init__.py").write_text("raise ImportError('not here')")
    isolated, _ = wheel(tmp_path, PYTHONPATH=str(tmp_path / "none"))
    assert "-py3-none-linux" in isolated.name
    broken = script(tmp_path / "broken", "echo 'no space left'; exit 1")
    without, printed = wheel(tmp_path, CXX=broken, PYTHONPATH=str(tmp_path / "none"))
    assert broken in printed and "no space left" in printed
    for number, (path, compiler) in enumerate(itertools.product((isolated, without), ("g++", broken))):
        site = tmp_path / f"site{number}"
        zipfile.ZipFile(path).extractall(site)
        assert not [m.name for m in pkgutil.walk_packages([str(site / "dformer" / "ops")]) if "-" in m.name]
        roots = [str(site), *map(str, site.glob("*.data/purelib"))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots), "CXX": compiler}
        environment["XDG_CACHE_HOME"] = str(tmp_path / f"cache{number}")
        used = subprocess.run(
            [sys.executable, "-c", USE], cwd=site, env=environment, capture_output=True, text=True, check=True
        )
        expected = "reference" if (path, compiler) == (without, broken) else "native"
        assert used.stdout.split() == [expected, "8.0"]
        assert ("ms_deform_attn" in used.stderr) == (expected == "reference")
        assert (tmp_path / f"cache{number}").exists() == (path == without)
