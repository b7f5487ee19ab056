#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs PROGRAM with a new folder as its argument: in_folder.py PROGRAM. The folder goes after."""

import subprocess
import sys
import tempfile

with tempfile.TemporaryDirectory(prefix="virtiofsd-rows-") as folder:
    sys.exit(subprocess.run([sys.argv[1], folder], check=False).returncode)
