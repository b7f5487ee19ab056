#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The command lines with which other programs start a virtiofsd start this one.

Usage: launchers_test.py VIRTIOFSD [unittest options]. Each line is spelled as
that program spells it; only the paths are ours. Started means: a vhost-user
front-end connects, GET_FEATURES is answered, and when the front-end leaves the
daemon ends with status 0.
"""

import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BINARY = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else "virtiofsd"
ROOT = os.geteuid() == 0
FILE_SYSTEM = subprocess.run(["stat", "-f", "-c", "%T", tempfile.gettempdir()], capture_output=True,
                             text=True, check=True).stdout.strip()
SANITIZED = any(mark in pathlib.Path(BINARY).read_bytes() for mark in (b"__asan_init", b"__tsan_init"))

GET_FEATURES = 1
VERSION_1 = 1 << 32


class LauncherTest(unittest.TestCase):
    def setUp(self):
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="virtiofsd-launch-"))
        self.place.chmod(0o755)
        self.share = self.place / "a share, with a comma"
        self.share.mkdir()
        self.socket = self.place / "socket"
        self.process = None

    def tearDown(self):
        self.end()
        shutil.rmtree(self.place)

    def end(self):
        if self.process:
            if self.process.poll() is None:
                self.process.kill()
            self.process.communicate()
            self.process = None

    def spawn(self, words, **keywords):
        words = [BINARY, *map(str, words), *(["--seccomp=none"] if SANITIZED else [])]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, **keywords)

    def expect_served(self):
        with socket.socket(socket.AF_UNIX) as vmm:
            vmm.settimeout(10)
            end = time.monotonic() + 10
            while vmm.connect_ex(str(self.socket)) != 0:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.process.kill()
                    self.fail(f"{self.process.args}: {self.process.communicate()[1]}")
                time.sleep(0.005)
            vmm.sendall(struct.pack("<III", GET_FEATURES, 1, 0))
            try:
                reply = vmm.recv(100)
            except TimeoutError:
                reply = b""
            if len(reply) != 20:
                self.process.kill()
                self.fail(f"{self.process.args}: {self.process.communicate()[1]}")
            self.assertTrue(struct.unpack("<IIIQ", reply)[3] & VERSION_1)
        self.assertEqual(self.process.wait(10), 0, self.process.args)

    def by_path(self, *words):
        self.spawn(words)
        self.expect_served()
        self.end()

    def by_descriptor(self, number, make_words):
        """The launcher listens and hands the socket over, as `number` or, for None, as it is."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.socket))
            listening.listen(1)
            if number is None:
                fd = listening.fileno()
                self.spawn(make_words(fd), pass_fds=[fd])
            else:
                # The shell is how a number of our choice comes about.
                words = ["/bin/sh", "-c", f'exec "$@" {number}<&{listening.fileno()}', "sh", BINARY,
                         *map(str, make_words(number)), *(["--seccomp=none"] if SANITIZED else [])]
                self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True,
                                                pass_fds=[listening.fileno()])
        self.expect_served()
        self.end()
        self.socket.unlink()

    @unittest.skipUnless(ROOT, "is started by root")
    def test_libvirt_with_one_list_of_options(self):
        share = str(self.share).replace(",", ",,")
        for more in ("cache=always,sandbox=namespace,xattr,flock,posix_lock",
                     "cache=none,sandbox=chroot,no_xattr,no_flock,no_posix_lock",
                     "xattr,flock,no_posix_lock", "cache=always"):
            self.by_descriptor(None, lambda fd, more=more: [f"--fd={fd}", "-o", f"source={share},{more}"])
        self.by_descriptor(None, lambda fd: [
            f"--fd={fd}", "-o", f"source={share},cache=always,xattr", "--thread-pool-size=16", "-d"])

    @unittest.skipUnless(ROOT, "is started by root")
    def test_libvirt_with_separate_options(self):
        self.by_descriptor(None, lambda fd: [
            f"--fd={fd}", "--shared-dir", self.share, "--cache", "always", "--sandbox", "namespace", "--xattr",
            "--thread-pool-size", "8", "--inode-file-handles=prefer", "--readonly"])

    def test_libvirt_reads_the_capabilities_first(self):
        said = subprocess.run([BINARY, "--print-capabilities"], capture_output=True, text=True,
                              timeout=20, check=True).stdout
        self.assertIn('"separate-options"', said)
        self.assertIn('"migrate-precopy"', said)

    @unittest.skipUnless(ROOT, "is started by root")
    def test_kata(self):
        # A container's overlayfs has no file handles, and the daemon says so.
        handles = "prefer" if FILE_SYSTEM == "overlayfs" else "mandatory"
        for more in ([], [f"--inode-file-handles={handles}"], ["--thread-pool-size=1", "--announce-submounts"],
                     ["-o", "announce_submounts"]):
            for cache in ("auto", "always", "never", "metadata"):
                self.by_descriptor(None, lambda fd, cache=cache, more=more: [
                    "--syslog", f"--cache={cache}", f"--shared-dir={self.share}", f"--fd={fd}", *more])

    @unittest.skipUnless(ROOT, "is started by root")
    def test_kata_with_the_first_daemon(self):
        share = str(self.share).replace(",", "\\,")
        self.by_descriptor(3, lambda fd: [
            f"--fd={fd}", "-o", f"source={share}", "-o", "cache=auto", "--syslog", "-o", "no_posix_lock", "-f",
            "--thread-pool-size=1"])

    @unittest.skipUnless(ROOT, "is started by root")
    def test_incus(self):
        for more in ([], ["--readonly"], ["--posix-acl=auto"],
                     ["--translate-uid=map:0:100000:65536", "--translate-gid=map:0:100000:65536"],
                     ["--translate-uid=forbid-guest:0:1000", "--translate-uid=map:1000:1000:1",
                      "--translate-uid=forbid-guest:1001:4294966294", "--translate-gid=forbid-guest:0:1000",
                      "--translate-gid=map:1000:1000:1", "--translate-gid=forbid-guest:1001:4294966294"]):
            for cache in ("never", "metadata", "always"):
                self.by_descriptor(3, lambda fd, cache=cache, more=more: [
                    f"--fd={fd}", f"--cache={cache}", *more, f"--shared-dir={self.share}"])

    def test_lima_as_an_ordinary_user(self):
        words = ["--socket-path", self.socket, "--shared-dir", self.share]
        if ROOT:
            # Any uid that isn't root's will do.
            mine = self.place / "mine"
            mine.mkdir()
            os.chown(mine, 65534, 65534)
            self.socket = mine / "socket"
            binary = mine / "virtiofsd"
            shutil.copy(BINARY, binary)
            words[1] = self.socket
            self.process = subprocess.Popen(
                [binary, *map(str, words), *(["--seccomp=none"] if SANITIZED else [])], stderr=subprocess.PIPE,
                text=True, user=65534, group=65534, extra_groups=[])
        else:
            self.spawn(words)
        self.expect_served()

    @unittest.skipUnless(ROOT, "is started by root")
    def test_virtme_ng(self):
        help_text = subprocess.run([BINARY, "--help"], capture_output=True, text=True, timeout=20,
                                   check=True).stdout
        self.assertIn("--readonly", help_text)
        self.by_path("--syslog", "--socket-path", self.socket, "--shared-dir", self.share, "--sandbox", "none")
        self.by_path("--socket-path", self.socket, "--shared-dir", self.share, "--announce-submounts",
                     "--sandbox", "none", "-o", "cache=always", "--readonly")

    @unittest.skipUnless(ROOT, "is started by root")
    def test_qemu_s_own_spellings(self):
        share = str(self.share).replace(",", "\\,")
        self.by_path(f"--socket-path={self.socket}", "-o", f"source={share}")
        self.by_path(f"--socket-path={self.socket}", "-o", f"source={share}", "-o", "cache=always", "-f", "-d",
                     "-o", "log_level=warn", "-o", "writeback", "-o", "norace", "--rlimit-nofile=4096",
                     "-o", "modcaps=+sys_admin:-mknod", "-o", "timeout=0.5", "-o", "allow_root",
                     "-o", "max_idle_threads=3", "-o", "fsname=x,subtype=y")


if __name__ == "__main__":
    unittest.main()
