"""What multi-scale deformable attention can run on: the tests of the operator go through all of it."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dformer.ops import build, native

INSTRUCTION_SETS = {"baseline": 0, "AVX2": 1, "AVX-512": 2}


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> native.Library:
    """The CUDA kernels, compiled for the CPU with an emulation of CUDA."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("emulated") / "cuda.so"
    headers, source = Path(__file__).parent / "emulated_cuda", build.PACKAGE / "csrc" / "cuda.cu"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-I", str(headers), "-x", "c++"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    return native.cuda_library(ctypes.CDLL(str(library)))


@pytest.fixture(
    params=["reference", *INSTRUCTION_SETS, "emulated CUDA", pytest.param("CUDA", marks=pytest.mark.gpu)],
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Where to put tensors, with the kernels set up that are to take them."""
    if request.param == "CUDA":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        assert native.state("cuda", 0).library, native.state("cuda", 0).explanation
        yield torch.device("cuda", 0)
    elif request.param == "reference":
        monkeypatch.setattr(native, "library", lambda kind, index: None)
        yield torch.device("cpu")
    elif request.param == "emulated CUDA":
        library = request.getfixturevalue("emulated")
        monkeypatch.setattr(native, "library", lambda kind, index: library)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=None))
        yield torch.device("cpu")
    else:
        yield from instruction_set(request.param)


def instruction_set(name: str) -> Iterator[torch.device]:
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    state = native.state("cpu", None)
    assert state.library, state.explanation
    functions = state.library.functions
    functions.dformer_cpu_limit_isa(INSTRUCTION_SETS[name])
    if functions.dformer_cpu_isa().decode() != name:
        pytest.skip(f"this CPU has no {name}")
    yield torch.device("cpu")
    functions.dformer_cpu_limit_isa(max(INSTRUCTION_SETS.values()))
