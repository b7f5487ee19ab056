#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Starts the built daemon in every way it can be started and ended.

Usage: start_test.py VIRTIOFSD [unittest options]. Tests that need root are
skipped without it. Rows of the feature list that show at start (S3, C4 ...)
are named in the tests' names.
"""

import grp
import json
import os
import pathlib
import pwd
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import unittest

BINARY = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else "virtiofsd"
ROOT = os.geteuid() == 0
# Sanitizers make system calls that the filter has no reason to allow.
SANITIZED = any(mark in pathlib.Path(BINARY).read_bytes() for mark in (b"__asan_init", b"__tsan_init"))
WORKER_CAPABILITIES = {0, 1, 3, 4, 6, 7, 27, 31}  # chown ... setfcap, by number


def until(condition, seconds=10.0):
    """Waits for `condition` to give something true; what it gave, or the last false thing."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > end:
            return value
        time.sleep(0.005)


def children(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def connect(client, path):
    """Connects; the name is there a moment before somebody listens."""
    def try_once():
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True
    if not until(try_once):
        raise AssertionError(f"nobody listens on {path}")


def status_of(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def capabilities(status, kind):
    bits = int(status[kind], 16)
    return {bit for bit in range(64) if bits >> bit & 1}


class Tree:
    """A started daemon: its three processes."""

    def __init__(self, process):
        self.process = process
        self.launcher = process.pid
        self.supervisor = self._child_of(self.launcher)
        self.worker = self._child_of(self.supervisor)

    @staticmethod
    def _child_of(pid):
        found = until(lambda: children(pid))
        # Never 0, which as a pid would mean our own process group.
        if not found:
            raise AssertionError(f"process {pid} has no child")
        return found[0]

    def all(self):
        return [self.launcher, self.supervisor, self.worker]


def is_alive(pid):
    try:
        return status_of(pid)["State"][0] not in "ZX"
    except (OSError, KeyError):
        return False


class StartTest(unittest.TestCase):
    def setUp(self):
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="virtiofsd-start-"))
        self.place.chmod(0o755)
        self.share = self.place / "share"
        self.share.mkdir()
        self.socket = self.place / "socket"
        self.processes = []
        self.seccomp = ["--seccomp=none"] if SANITIZED else []

    def tearDown(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        shutil.rmtree(self.place)

    def run_daemon(self, *arguments, **keywords):
        """Runs it to its end; for starts that fail or print something."""
        return subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True,
                              timeout=20, **keywords)

    def spawn(self, *arguments, **keywords):
        process = subprocess.Popen([BINARY, *self.seccomp, *map(str, arguments)],
                                   stderr=subprocess.PIPE, text=True, **keywords)
        self.processes.append(process)
        return process

    def start(self, *arguments, **keywords):
        process = self.spawn(f"--socket-path={self.socket}", "-o", f"source={self.share}",
                             *arguments, **keywords)
        self.assertTrue(until(lambda: self.socket.exists() or process.poll() is not None))
        if process.poll() is not None:
            self.fail(process.stderr.read())
        return Tree(process)

    def assert_all_gone(self, tree):
        for pid in tree.all():
            self.assertTrue(until(lambda: not is_alive(pid), 2), f"process {pid} is left")

    def assert_nothing_left(self):
        self.assertEqual(sorted(path.name for path in self.place.iterdir()), ["share"])

    def assert_refused(self, result, status, *parts):
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)
        for part in parts:
            self.assertIn(part, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assert_nothing_left()

    # What only prints.

    def test_S3_help_and_version(self):
        for words in (["-h"], ["--help"]):
            shown = self.run_daemon(*words)
            self.assertEqual(shown.returncode, 0)
            self.assertIn("--socket-path=PATH", shown.stdout)
        for words in (["-V"], ["--version"]):
            shown = self.run_daemon(*words)
            self.assertEqual((shown.returncode, shown.stdout.split()[0]), (0, "virtiofsd"))

    def test_C1_print_capabilities_agrees_with_the_descriptor(self):
        printed = json.loads(self.run_daemon("--print-capabilities").stdout)
        self.assertEqual(printed["type"], "fs")
        descriptor = pathlib.Path(__file__).parents[2] / "packaging" / "50-virtiofsd.json"
        described = json.loads(descriptor.read_text())
        self.assertEqual(described["type"], "fs")
        self.assertEqual(described["features"], printed["features"])

    # Starts that are refused.

    def test_a_start_that_cannot_work_says_why_and_leaves_nothing(self):
        here = [f"--socket-path={self.socket}", f"--shared-dir={self.share}"]
        self.assert_refused(self.run_daemon(f"--socket-path={self.socket}"), 2, "--shared-dir")
        self.assert_refused(self.run_daemon(f"--shared-dir={self.share}"), 2, "--socket-path")
        self.assert_refused(self.run_daemon(*here, "--what", "-o", "ever"), 2, "--what", "-o ever")
        self.assert_refused(self.run_daemon(*here, "--cache=some"), 2, "--cache=some")
        self.assert_refused(self.run_daemon(*here, "-o", "timeout=-1"), 2, "timeout=-1")
        self.assert_refused(self.run_daemon(*here, "-o", "xattrmap=x"), 2, "xattrmap")
        self.assert_refused(self.run_daemon(*here, "-o", "modcaps=+flying"), 1, "+flying")
        self.assert_refused(self.run_daemon(*here, "--socket-group=no-such-group"), 1,
                            "no-such-group")
        self.assert_refused(self.run_daemon(*here, "--rlimit-nofile=2147483648"), 1,
                            "--rlimit-nofile")
        self.assert_refused(
            self.run_daemon(f"--socket-path={self.socket}", "--shared-dir=/nowhere"), 1,
            "/nowhere", "does not exist")
        self.assert_refused(
            self.run_daemon(f"--socket-path={self.socket}", "--shared-dir=/dev/null"), 1,
            "/dev/null", "not a directory")
        self.assert_refused(self.run_daemon(f"--socket-path={self.place}/{'x' * 120}", here[1]), 1,
                            "107")
        self.assert_refused(self.run_daemon(f"--socket-path={self.place}/none/s", here[1]), 1,
                            f"{self.place}/none")
        self.assert_refused(self.run_daemon("--fd=99", here[1]), 1, "--fd=99")
        self.assert_refused(self.run_daemon(*here, "--take-over=1"), 1, "--take-over=1", str(self.socket))
        self.assert_refused(self.run_daemon(here[1], "--take-over=1"), 1, "--take-over=1")
        # What a name has in it doesn't steer the operator's terminal.
        self.assert_refused(
            self.run_daemon(here[0], "--shared-dir=/no\x1b[31m\nwhere"), 1, "/no?[31m?where")

    def test_a_file_size_limit_that_is_too_low_is_told(self):
        def low():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

        self.assert_refused(self.run_daemon(f"--socket-path={self.socket}", f"--shared-dir={self.share}",
                                            preexec_fn=low), 1, "memory for the state", "EFBIG")

    def test_C14_a_second_start_is_refused_while_the_first_lives(self):
        first = self.start()
        second = self.run_daemon(f"--socket-path={self.socket}", f"--shared-dir={self.share}")
        self.assertEqual(second.returncode, 1)
        self.assertIn(f"in use by another virtiofsd (pid {first.launcher})", second.stderr)
        self.assertTrue(self.socket.exists())
        self.assertIsNone(first.process.poll())

    # How it listens.

    def test_S15_the_socket_is_for_its_owner_and_the_pid_file_tells_who(self):
        tree = self.start()
        mode = self.socket.stat().st_mode
        self.assertEqual((stat.S_ISSOCK(mode), stat.S_IMODE(mode)), (True, 0o600))
        pid_file = self.place / "socket.pid"
        self.assertEqual(int(pid_file.read_text()), tree.launcher)

    def test_C4_socket_group(self):
        group = os.getegid()
        self.start(f"--socket-group={grp.getgrgid(group).gr_name}")
        self.assertTrue(until(lambda: stat.S_IMODE(self.socket.stat().st_mode) == 0o660))
        self.assertEqual(self.socket.stat().st_gid, group)

    def test_S15_a_stale_socket_is_replaced(self):
        tree = self.start()
        for pid in (tree.launcher, tree.supervisor, tree.worker):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        tree.process.wait(10)
        self.assert_all_gone(tree)  # the last of them lets the pid file go
        self.assertTrue(self.socket.exists())
        before = self.socket.stat().st_ctime_ns
        self.spawn(f"--socket-path={self.socket}", f"--shared-dir={self.share}")
        self.assertTrue(until(lambda: self.socket.exists()
                              and self.socket.stat().st_ctime_ns != before))

    def test_status_zero_after_the_client_left(self):
        tree = self.start()
        with socket.socket(socket.AF_UNIX) as client:
            until(lambda: client.connect_ex(str(self.socket)) == 0)
            self.assertIsNone(tree.process.poll())
        self.assertEqual(tree.process.wait(5), 0)
        self.assert_all_gone(tree)
        self.assert_nothing_left()

    def test_S16_fd_listening_or_connected(self):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.socket))
            listening.listen(1)
            daemon = self.spawn(f"--fd={listening.fileno()}", f"--shared-dir={self.share}",
                                pass_fds=[listening.fileno()])
            with socket.socket(socket.AF_UNIX) as client:
                connect(client, self.socket)
                self.assertIn("client connected", self.read_until(daemon, "client connected"))
            self.assertEqual(daemon.wait(5), 0)
        ours, theirs = socket.socketpair()
        daemon = self.spawn("--fd", theirs.fileno(), f"--shared-dir={self.share}",
                            pass_fds=[theirs.fileno()])
        theirs.close()
        self.read_until(daemon, "client connected")
        ours.close()
        self.assertEqual(daemon.wait(5), 0)

    def read_until(self, daemon, words):
        lines = ""
        while words not in lines:
            line = daemon.stderr.readline()
            if not line:
                break
            lines += line
        return lines

    def test_systemd_passes_the_socket_and_hears_when_it_is_ready(self):
        with socket.socket(socket.AF_UNIX) as listening, \
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            listening.bind(str(self.socket))
            listening.listen(1)
            manager.bind(str(self.place / "notify"))
            manager.settimeout(10)
            environment = dict(os.environ, LISTEN_FDS="1", NOTIFY_SOCKET=str(self.place / "notify"))
            script = f"LISTEN_PID=$$ exec '{BINARY}' {' '.join(self.seccomp)} " \
                     f"--shared-dir='{self.share}' 3<&{listening.fileno()}"
            daemon = subprocess.Popen(["/bin/sh", "-c", script], env=environment,
                                      pass_fds=[listening.fileno()], stderr=subprocess.PIPE)
            self.processes.append(daemon)
            self.assertIn(b"READY=1", manager.recv(1000))
            with socket.socket(socket.AF_UNIX) as client:
                connect(client, self.socket)
                client.shutdown(socket.SHUT_RDWR)
            self.assertEqual(daemon.wait(10), 0)

    def test_C2_daemonize_returns_when_the_socket_is_there(self):
        done = self.run_daemon(*self.seccomp, f"--socket-path={self.socket}",
                               f"--shared-dir={self.share}", "--daemonize")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(self.socket.exists())
        pid = int((self.place / "socket.pid").read_text())
        self.assertTrue(is_alive(pid))
        os.kill(pid, signal.SIGTERM)
        self.assertTrue(until(lambda: not self.socket.exists()))
        failed = self.run_daemon("--socket-path=/nowhere/s", f"--shared-dir={self.share}",
                                 "--daemonize")
        self.assertEqual(failed.returncode, 1)
        self.assertIn("/nowhere", failed.stderr)

    # How it ends.

    def test_signals_end_it_within_a_second_from_any_state(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for state in ("waiting", "serving", "stuck", "supervisor stuck"):
                with self.subTest(signal=number, state=state):
                    tree = self.start()
                    client = socket.socket(socket.AF_UNIX)
                    if state == "serving":
                        connect(client, self.socket)
                    if state == "stuck":
                        os.kill(tree.worker, signal.SIGSTOP)
                    if state == "supervisor stuck":
                        os.kill(tree.supervisor, signal.SIGSTOP)
                    before = time.monotonic()
                    os.kill(tree.launcher, number)
                    self.assertEqual(tree.process.wait(5), 0)
                    self.assertLess(time.monotonic() - before, 1)
                    client.close()
                    self.assert_all_gone(tree)
                    self.assert_nothing_left()

    def test_a_killed_worker_ends_the_daemon_with_a_clear_last_line(self):
        for number, name in ((signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "SIGKILL")):
            tree = self.start()
            os.kill(tree.worker, number)
            self.assertEqual(tree.process.wait(5), 1)
            last = tree.process.stderr.read().strip().splitlines()[-1]
            self.assertIn(f"the worker was ended by {name}", last)
            self.assert_all_gone(tree)
            self.assert_nothing_left()

    def test_everything_dies_with_a_killed_launcher(self):
        tree = self.start()
        os.kill(tree.launcher, signal.SIGKILL)
        tree.process.wait(5)
        self.assert_all_gone(tree)

    # What it gives up.

    def descriptors(self, pid):
        folder = f"/proc/{pid}/fd"
        return {int(name): os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}

    @unittest.skipUnless(ROOT, "needs root")
    def test_S19_C5_the_worker_is_in_its_own_namespaces_with_the_share_as_root(self):
        (self.share / "inside").write_text("")
        tree = self.start("--readonly")
        for kind in ("mnt", "pid", "net"):
            ours = os.readlink(f"/proc/self/ns/{kind}")
            self.assertNotEqual(os.readlink(f"/proc/{tree.worker}/ns/{kind}"), ours, kind)
            self.assertNotEqual(os.readlink(f"/proc/{tree.supervisor}/ns/{kind}"), ours, kind)
        self.assertEqual(os.listdir(f"/proc/{tree.worker}/root"), ["inside"])
        self.assertEqual(os.listdir(f"/proc/{tree.supervisor}/root"), ["inside"])
        mounts = pathlib.Path(f"/proc/{tree.worker}/mountinfo").read_text().splitlines()
        self.assertEqual(len(mounts), 1, mounts)
        flags = mounts[0].split()[5].split(",")
        for flag in ("nosuid", "nodev", "ro"):
            self.assertIn(flag, flags)
        self.assertEqual(status_of(tree.worker)["NSpid"].split()[-1], "2")

    @unittest.skipUnless(ROOT, "needs root")
    def test_C5_chroot_makes_the_share_the_root(self):
        (self.share / "inside").write_text("")
        tree = self.start("-o", "sandbox=chroot")
        self.assertEqual(os.readlink(f"/proc/{tree.worker}/root"), str(self.share))
        self.assertEqual(os.readlink(f"/proc/{tree.worker}/ns/mnt"), os.readlink("/proc/self/ns/mnt"))

    @unittest.skipUnless(ROOT, "needs root")
    def test_C7_capabilities_are_cut_to_what_serving_takes(self):
        for mode in ("namespace", "chroot", "none"):
            tree = self.start(f"--sandbox={mode}")
            for pid in (tree.supervisor, tree.worker):
                status = status_of(pid)
                for kind in ("CapPrm", "CapEff", "CapBnd"):
                    self.assertEqual(capabilities(status, kind), WORKER_CAPABILITIES, kind)
                self.assertEqual(capabilities(status, "CapInh"), set())
                self.assertEqual(capabilities(status, "CapAmb"), set())
                self.assertEqual(status["NoNewPrivs"], "1")
                self.assertEqual(status["Groups"].strip(), "")
            # The socket is there a moment before: making it takes more.
            left = until(lambda: capabilities(status_of(tree.launcher), "CapPrm") <= {1, 3})
            self.assertTrue(left, status_of(tree.launcher)["CapPrm"])
            os.kill(tree.launcher, signal.SIGTERM)
            tree.process.wait(5)
        tree = self.start("-o", "modcaps=-mknod:+sys_admin")
        self.assertEqual(capabilities(status_of(tree.worker), "CapBnd"),
                         WORKER_CAPABILITIES - {27} | {21})

    @unittest.skipIf(SANITIZED, "sanitizers don't run under the filter")
    def test_S20_seccomp_filters_supervisor_and_worker(self):
        tree = self.start()
        self.assertEqual(status_of(tree.supervisor)["Seccomp"], "2")
        worker = status_of(tree.worker)
        self.assertEqual((worker["Seccomp"], worker["Seccomp_filters"]), ("2", "2"))

    def test_only_descriptors_it_needs_are_open(self):
        leaked = os.open(self.place, os.O_RDONLY)
        os.set_inheritable(leaked, True)
        tree = self.start(close_fds=False)
        os.close(leaked)
        for pid in tree.all():
            for number, name in self.descriptors(pid).items():
                self.assertNotEqual(name, str(self.place), f"{number} in {pid}")
        # The lock is the launcher's alone, and the share isn't held in the caller's mounts.
        self.assertIn(f"{self.socket}.pid", self.descriptors(tree.launcher).values())
        self.assertNotIn(str(self.share), self.descriptors(tree.launcher).values())
        if ROOT:
            self.assertNotIn(f"{self.socket}.pid", self.descriptors(tree.worker).values())

    @unittest.skipUnless(ROOT, "needs root")
    def test_C3_rlimit_nofile(self):
        def limit(pid):
            for line in pathlib.Path(f"/proc/{pid}/limits").read_text().splitlines():
                if line.startswith("Max open files"):
                    return int(line.split()[3])
        tree = self.start("--rlimit-nofile=4321")
        self.assertEqual(limit(tree.worker), 4321)
        os.kill(tree.launcher, signal.SIGTERM)
        tree.process.wait(5)
        tree = self.start("--rlimit-nofile=0",
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (777, 777)))
        self.assertEqual(limit(tree.worker), 777)

    @unittest.skipUnless(ROOT, "changes to another user")
    def test_S21_an_ordinary_user_gets_a_user_namespace_or_a_clear_sentence(self):
        nobody = pwd.getpwnam("nobody")
        mine = self.place / "nobody"
        mine.mkdir()
        os.chown(mine, nobody.pw_uid, nobody.pw_gid)
        binary = mine / "virtiofsd"
        shutil.copy(BINARY, binary)
        path = mine / "socket"
        as_nobody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        daemon = subprocess.Popen([binary, *self.seccomp, f"--socket-path={path}",
                                   f"--shared-dir={self.share}"], stderr=subprocess.PIPE,
                                  text=True, **as_nobody)
        self.processes.append(daemon)
        until(lambda: path.exists() or daemon.poll() is not None)
        if daemon.poll() is not None:
            self.assertIn("user namespace", daemon.stderr.read())
        else:
            tree = Tree(daemon)
            self.assertNotEqual(os.readlink(f"/proc/{tree.worker}/ns/user"),
                                os.readlink("/proc/self/ns/user"))
            first = pathlib.Path(f"/proc/{tree.worker}/uid_map").read_text().split()[:3]
            self.assertEqual(first, ["0", str(nobody.pw_uid), "1"])
            daemon.terminate()
            self.assertEqual(daemon.wait(5), 0)
        refused = subprocess.run([binary, "--sandbox=chroot", f"--socket-path={path}",
                                  f"--shared-dir={self.share}"], capture_output=True, text=True,
                                 timeout=20, **as_nobody)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("--sandbox=chroot needs root", refused.stderr)
        shutil.rmtree(mine)

    @unittest.skipUnless(ROOT, "needs root")
    def test_without_CAP_SYS_ADMIN_it_says_which_sandbox_works(self):
        if not shutil.which("setpriv"):
            self.skipTest("setpriv isn't there")
        container = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", BINARY,
                     f"--socket-path={self.socket}", f"--shared-dir={self.share}"]
        refused = subprocess.run(container, capture_output=True, text=True, timeout=20)
        self.assert_refused(refused, 1, "CAP_SYS_ADMIN", "--sandbox=chroot")
        daemon = subprocess.Popen([*container, "--sandbox=chroot", *self.seccomp],
                                  stderr=subprocess.PIPE, text=True)
        self.processes.append(daemon)
        self.assertTrue(until(self.socket.exists))

    # Logging.

    def test_S4_S6_levels(self):
        self.assertIn("info:", self.first_words())
        self.assertEqual(self.first_words("-o", "log_level=warn"), "")
        self.assertEqual(self.first_words("--log-level=off"), "")
        self.assertIn("info:", self.first_words("-d"))

    def first_words(self, *arguments):
        tree = self.start(*arguments)
        os.kill(tree.launcher, signal.SIGTERM)
        tree.process.wait(5)
        return tree.process.stderr.read()

    @unittest.skipIf(os.path.exists("/dev/log"), "there is a syslog, which can't be read from here")
    def test_S5_syslog_gets_the_log_also_from_inside_the_sandbox(self):
        self.assertIn("no syslog here", self.first_words("--syslog"))
        if not ROOT:
            self.skipTest("needs root to play syslog")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.bind("/dev/log")
            try:
                self.assertEqual(self.first_words("--syslog"), "")
            finally:
                os.unlink("/dev/log")
            log.settimeout(10)
            message = log.recv(1000).decode()
            # LOG_DAEMON and LOG_INFO: 3 * 8 + 6. (RFC 3164)
            self.assertTrue(message.startswith("<30>"), message)
            self.assertIn("virtiofsd[", message)
            self.assertIn("sandbox", message)

    @unittest.skipIf(SANITIZED or not ROOT or os.path.exists("/dev/log"), "needs to play syslog")
    def test_a_syslog_that_goes_away_does_no_harm(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.bind("/dev/log")
            tree = self.start("--syslog")
            os.unlink("/dev/log")
        with socket.socket(socket.AF_UNIX) as client:
            until(lambda: client.connect_ex(str(self.socket)) == 0)
        self.assertEqual(tree.process.wait(5), 0)


if __name__ == "__main__":
    unittest.main()
