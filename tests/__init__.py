"""The tests; `ROOT` is the checkout that they are of."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
