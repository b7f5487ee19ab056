#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The part of ./demo after the build: starts the daemon on a folder, boots a User Mode
Linux guest with it, and gives a shell there or takes the tour (--check)."""

import argparse
import hashlib
import os
import shutil
import signal
import stat
import sys
import tempfile
from pathlib import Path

import guest
import images
from cases import expect

MIB = 1 << 20


def say(words):
    print(f"== {words}", flush=True)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Tour:
    """Steps that each compare what one side did with what the other sees."""

    def __init__(self, booted, host, inside):
        self._guest = booted
        self._host = host
        self._inside = inside

    def _run(self, script):
        return self._guest.run(f"cd {self._inside}\n{script}")

    def take(self):
        steps = [self.listing, self.guest_writes, self.host_writes, self.big_file_from_guest,
                 self.big_file_from_host, self.rename, self.symlink, self.permissions]
        for number, step in enumerate(steps, 1):
            print(f"   {number}. {step.__doc__} ", end="", flush=True)
            step()
            print("- held", flush=True)

    def listing(self):
        """the guest lists what the host has"""
        for name in ("one", "two", "three"):
            (self._host / name).write_text(name)
        seen = self._run("ls -1A").split()
        expect(sorted(seen) == sorted(os.listdir(self._host)), f"the guest sees {seen}")

    def guest_writes(self):
        """the guest writes, the host reads"""
        self._run("echo 'written in the guest' > from-guest")
        text = (self._host / "from-guest").read_text()
        expect(text == "written in the guest\n", f"the host reads {text!r}")

    def host_writes(self):
        """the host writes, the guest reads"""
        (self._host / "from-host").write_text("written on the host\n")
        text = self._run("cat from-host")
        expect(text == "written on the host\n", f"the guest reads {text!r}")

    def big_file_from_guest(self):
        """64 MiB written in the guest have the same SHA-256 on the host"""
        sum_ = self._run("head -c 64M /dev/urandom > big-guest; sha256sum big-guest").split()[0]
        expect((self._host / "big-guest").stat().st_size == 64 * MIB, "the size differs")
        expect(sha256(self._host / "big-guest") == sum_, "the checksum differs")

    def big_file_from_host(self):
        """64 MiB written on the host have the same SHA-256 in the guest"""
        with open(self._host / "big-host", "wb") as file:
            for _ in range(64):
                file.write(os.urandom(MIB))
        sum_ = self._run("sha256sum big-host").split()[0]
        expect(sha256(self._host / "big-host") == sum_, "the checksum differs")

    def rename(self):
        """a file renamed in the guest has its new name on the host"""
        self._run("mkdir folder; mv from-guest folder/renamed")
        expect(not (self._host / "from-guest").exists(), "the old name is still there")
        text = (self._host / "folder" / "renamed").read_text()
        expect(text == "written in the guest\n", f"the renamed file has {text!r}")

    def symlink(self):
        """a symbolic link made in the guest leads to the same file on both sides"""
        self._run("ln -s folder/renamed link; grep -q 'in the guest' link")
        expect(os.readlink(self._host / "link") == "folder/renamed", "the host sees another target")
        expect((self._host / "link").samefile(self._host / "folder" / "renamed"), "it leads elsewhere")

    def permissions(self):
        """modes set on either side are seen on the other"""
        self._run("chmod 640 folder/renamed")
        mode = stat.S_IMODE((self._host / "folder" / "renamed").stat().st_mode)
        expect(mode == 0o640, f"the host sees {mode:o}")
        (self._host / "by-host").write_text("")
        os.chmod(self._host / "by-host", 0o751)
        seen = self._run("stat -c %a by-host").strip()
        expect(seen == "751", f"the guest sees {seen}")


def tour(options, folder):
    say("Booting a User Mode Linux guest, the folder on /mnt")
    work = Path(tempfile.mkdtemp(prefix="virtiofsd-tour-", dir=folder))
    try:
        with guest.Daemon(options.daemon, folder, "uml") as daemon:
            with guest.Guest("uml", daemon, options.cache) as booted:
                print("   " + booted.run("uname -sr").strip() + ", " +
                      booted.run("grep ' /mnt ' /proc/mounts").strip())
                say("The tour")
                Tour(booted, work, f"/mnt/{work.name}").take()
                say("Unmounting, powering off")
                booted.power_off()
            daemon.expect_clean_exit()
    finally:
        shutil.rmtree(work)
    say("All of it held.")


def shell(options, folder):
    say(f"Booting a User Mode Linux guest, {folder} on /mnt")
    with guest.Daemon(options.daemon, folder, "uml") as daemon:
        guest.shell(daemon, options.cache)
        daemon.expect_clean_exit()
    say("The guest is gone, the daemon with it.")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("folder", nargs="?", type=Path)
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    folder = options.folder
    made = None
    try:
        if folder is None:
            made = folder = Path(tempfile.mkdtemp(prefix="virtiofsd-demo-"))
            (folder / "README").write_text("This folder is on the host; the guest sees it as /mnt.\n")
        say(f"Serving {folder} with {options.daemon}")
        (tour if options.check else shell)(options, folder)
    except (guest.Failed, images.Missing, OSError) as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if made:
            shutil.rmtree(made, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
