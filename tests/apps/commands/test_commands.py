"""The command `dformer` and its subcommands."""

import subprocess
import sys

import pytest

import dformer
from dformer.apps import commands
from tests import ROOT, load_script


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dformer", *arguments])
    try:
        commands.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("name", [name for name in commands.COMMANDS if name not in ("env",)])
def test_each_has_its_own_help(monkeypatch, capsys, name):
    assert run(monkeypatch, name, "--help") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: dformer {name} ") and "%(" not in told


def test_they_are_listed_and_misspelt_ones_are_named(monkeypatch, capsys):
    assert run(monkeypatch) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in commands.COMMANDS)
    assert run(monkeypatch, "--version") == 0 and capsys.readouterr().out.strip() == dformer.__version__
    assert run(monkeypatch, "dmeo") == 2 and "demo" in capsys.readouterr().err


def test_eval_only_evaluates(monkeypatch, capsys):
    assert run(monkeypatch, "eval", "--overwrite", "--config-file", "configs/quick/dformer_shapes.yaml") == 2
    assert "--eval-only" in capsys.readouterr().err


def test_tools_are_commands():
    modules = {f"dformer.apps.{module}" for module, _, _ in commands.COMMANDS.values()}
    assert all(load_script(f"tools/{file.name}").main.__module__ in modules for file in (ROOT / "tools").glob("*.py"))


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "dformer", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == dformer.__version__
