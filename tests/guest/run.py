#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs guest tests: run.py --guest uml|qemu --daemon BINARY --programs FOLDER --cache FOLDER CASE...

Exit status 0: all held; 1: something did not, and what is on stderr; 77: guests
can't be booted here, unless GUESTS_REQUIRED is set, which makes that a failure.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import guest
import images
from cases import CASES, Skipped

SKIPPED = 77


def run(name, kind, options):
    case = CASES[name]
    programs = sorted(path for path in options.programs.iterdir() if os.access(path, os.X_OK) and path.is_file())
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="virtiofsd-share-") as share:
        os.chmod(share, 0o755)
        with guest.Daemon(options.daemon, share, kind, (*case.options, *options.option)) as daemon:
            with guest.Guest(kind, daemon, options.cache, programs, limit=options.limit,
                             queues=case.queues, cpus=case.cpus) as booted:
                up = time.monotonic()
                case.check(booted, Path(share))
                booted.power_off()
            daemon.expect_clean_exit()
    print(f"{kind}/{name}: held (boot {up - begun:.1f} s, all {time.monotonic() - begun:.1f} s)", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--guest", choices=["uml", "qemu"], required=True)
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=150, help="seconds a guest may take, all in all")
    parser.add_argument("--option", action="append", default=[], help="one more word for the daemon")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    # A test runner that gives up on us sends SIGTERM first: leave through the destructors.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    names = options.cases or [name for name, case in CASES.items() if options.guest in case.kinds]
    status = 0
    for name in names:
        try:
            run(name, options.guest, options)
        except (images.Missing, Skipped) as missing:
            print(f"{options.guest}/{name}: skipped: {missing}", file=sys.stderr)
            required = "GUESTS_REQUIRED" in os.environ and isinstance(missing, images.Missing)
            status = 1 if required else status or SKIPPED
        except guest.Failed as failure:
            print(f"{options.guest}/{name}: {failure}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
