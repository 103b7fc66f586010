"""Tests of the scripts in benchmarks/, which is a folder and no package: its modules import each other by name."""
