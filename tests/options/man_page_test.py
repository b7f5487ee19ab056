#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Holds man/virtiofsd.1 against what --help prints, and lints it.

Usage: man_page_test.py VIRTIOFSD [unittest options]
"""

import pathlib
import re
import shutil
import subprocess
import sys
import unittest

BINARY = sys.argv.pop(1)
PAGE = pathlib.Path(__file__).parents[2] / "man" / "virtiofsd.1"


def options_of_help():
    text = subprocess.run([BINARY, "--help"], capture_output=True, text=True, check=True).stdout
    heads = [line for line in text.splitlines() if re.match(r"  -", line)]
    return {word for head in heads for word in re.findall(r"--?[a-zA-Z][a-z0-9-]*", head)}


def options_of_page():
    documented = set()
    for line in PAGE.read_text().splitlines():
        if line.startswith(".It Fl"):
            documented |= {"--" + name for name in re.findall(r"Fl Fl ([a-z0-9-]+)", line)}
            documented |= {"-" + name for name in re.findall(r"Fl ([a-zA-Z])(?: |$|,)", line)}
    return documented


class ManPageTest(unittest.TestCase):
    def test_documents_every_option_of_the_help_text_and_no_other(self):
        self.assertEqual(sorted(options_of_help()), sorted(options_of_page() - {"-o"}))

    def test_lints_clean(self):
        if not shutil.which("mandoc"):
            self.skipTest("mandoc isn't installed")
        lint = subprocess.run(["mandoc", "-Tlint", "-W", "style", str(PAGE)],
                              capture_output=True, text=True)
        # Other packages' pages needn't be installed here.
        found = [line for line in lint.stdout.splitlines()
                 if "referenced manual not found" not in line]
        self.assertEqual(found, [])

    def test_the_packaged_descriptor_names_the_device(self):
        descriptor = PAGE.parents[1] / "packaging" / "50-virtiofsd.json"
        self.assertIn('"type": "fs"', descriptor.read_text())


if __name__ == "__main__":
    unittest.main()
