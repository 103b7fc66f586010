#!/usr/bin/env python3
"""The same as `dformer app`."""

from dformer.apps.commands.app import main

if __name__ == "__main__":
    main()
