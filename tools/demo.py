#!/usr/bin/env python3
"""The same as `dformer demo`."""

from dformer.apps.commands.demo import main

if __name__ == "__main__":
    main()
