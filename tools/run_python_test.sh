#!/bin/sh
# Runs the unit tests of one Python file beside the code that it imports.
exec python3 -B -m unittest -v "$@"
