#!/usr/bin/env python3
"""The same as `dformer train`."""

from dformer.apps.commands.train import main

if __name__ == "__main__":
    main()
