#!/usr/bin/env python3
"""The same as `dformer check`."""

from dformer.apps.commands.check_dataset import main

if __name__ == "__main__":
    main()
