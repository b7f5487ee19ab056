# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Real Linux guests on a vhost-user-fs daemon, without KVM.

A `Daemon` serves a folder; a `Guest` boots Linux with that folder mounted on
/mnt and runs commands there. Always true: every wait has a deadline, every
process runs in a group of its own that is killed at the end, whatever
happened, and dies with this one; all files lie in one temporary folder.
"""

import base64
import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import images

TAG = "share"


class Failed(Exception):
    """What a guest or a daemon did wrong, with what they printed."""


def tail(path, lines=60):
    with contextlib.suppress(OSError):
        text = Path(path).read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])
    return ""


def start(command, **options):
    """A process in its own group that doesn't outlive us."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)],
                            start_new_session=True, **options)


def end(process):
    """Kills what is left of the process's group. The leader may be gone, its helpers not."""
    if process.poll() is None and process.stdin:
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def threads_of(process):
    """What each thread of its group does: name, state, processor time (ticks), and where it waits."""
    lines = []
    for path in sorted(Path("/proc").glob("[0-9]*/task/[0-9]*")):
        with contextlib.suppress(OSError, IndexError):
            words = (path / "stat").read_text().rpartition(")")[2].split()
            if int(words[2]) == process.pid:
                lines.append(f"{path.name} {(path / 'comm').read_text().strip()}: {words[0]}, "
                             f"{words[11]}+{words[12]} ticks, {(path / 'wchan').read_text()}")
    return "\n".join(lines)


class Daemon:
    """A daemon that serves `share`, ready for its front-end when the constructor returns.

    QEMU's daemon of Debian 12 is told by its folder: it knows --socket-path and
    -o source but not --shared-dir and --tag.
    """

    def __init__(self, binary, share, kind, options=()):
        self.folder = Path(tempfile.mkdtemp(prefix="virtiofsd-guest-"))
        self.socket = self.folder / "socket"
        self.log = self.folder / "log"
        command = [binary, f"--socket-path={self.socket}"]
        if Path(binary).parent == Path("/usr/lib/qemu"):
            command += ["-o", f"source={share}"]
        else:
            command += [f"--shared-dir={share}"]
            # QEMU 7.1 to 8.0 has the tag itself and fails on a device that answers for it.
            command += [f"--tag={TAG}"] if kind == "uml" else []
        self._command = command + list(options)
        self.process = self._start()
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.close()
            raise

    def _start(self, *more):
        with open(self.log, "ab") as log:
            return start([*self._command, *more], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def hand_over(self):
        """Another daemon goes on for this one, which ends."""
        before = self.process
        self.process = self._start(f"--take-over={before.pid}")
        try:
            status = before.wait(20)
        except subprocess.TimeoutExpired:
            status = "nothing"
        deadline = time.monotonic() + 20
        pid_file = self.socket.with_suffix(".pid")
        while status == 0 and pid_file.read_text().strip() != str(self.process.pid):
            status = "success, and nobody has its pid file" if time.monotonic() > deadline else 0
        if status != 0:
            end(before)
            raise Failed(f"the daemon that was taken over ended with {status}:\n{tail(self.log)}")

    def _wait_until_it_listens(self):
        deadline = time.monotonic() + 20
        while not self.socket.is_socket():
            if self.process.poll() is not None:
                raise Failed(f"the daemon ended with {self.process.returncode}:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                raise Failed(f"the daemon made no socket:\n{tail(self.log)}")
            time.sleep(0.01)

    def expect_clean_exit(self):
        """The client has left: the daemon must end by itself, with success."""
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            raise Failed(f"the daemon outlives its client:\n{tail(self.log)}") from None
        if status != 0:
            raise Failed(f"the daemon ended with {status}:\n{tail(self.log)}")

    def close(self):
        if self.process.poll() is None:
            # The polite way first: what a daemon started in namespaces of its own dies with it.
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        end(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Guest:
    """Linux in `kind` ("uml" or "qemu"), with the daemon's share on /mnt and the host's tools around it."""

    def __init__(self, kind, daemon, cache, programs=(), limit=150, queues=1, cpus=1, mount="", tag=TAG,
                 machine=None):
        """`machine`: QEMU's words for machine, memory and device, instead of ours."""
        self.kind = kind
        self.deadline = time.monotonic() + limit
        self.folder = Path(tempfile.mkdtemp(prefix="virtiofsd-guest-"))
        self.console = self.folder / "console"
        self._received = b""
        self._channel = self._process = None
        self.daemon = daemon
        try:
            words = f"guest_kind={kind} share_tag={tag} share_options={mount}"
            if kind == "uml":
                self._start_uml(daemon, cache, images.uml(cache, programs), words)
            else:
                self._start_qemu(daemon, images.qemu(cache, programs), words, queues, cpus, machine)
            self._expect("ready")
        except BaseException:
            self.close()
            raise

    def _start_uml(self, daemon, cache, initramfs, words):
        self._channel, theirs = socket.socketpair()
        with theirs, open(self.console, "wb") as console:
            fd = theirs.fileno()
            self._process = start(
                uml_command(cache, self.folder, initramfs, daemon.socket, words)
                + ["con0=null,fd:1", f"ssl0=fd:{fd},fd:{fd}"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, pass_fds=[fd])

    def _start_qemu(self, daemon, parts, words, queues, cpus, machine):
        kernel, initramfs, disk = parts
        path = self.folder / "channel"
        with socket.socket(socket.AF_UNIX) as listener, open(self.console, "wb") as console:
            listener.bind(str(path))
            listener.listen(1)
            machine = machine or [
                "-M", "q35,accel=tcg,memory-backend=mem", "-m", "512M", "-smp", cpus,
                "-object", "memory-backend-memfd,id=mem,size=512M,share=on",
                "-chardev", f"socket,id=fs,path={daemon.socket}",
                "-device", f"vhost-user-fs-pci,chardev=fs,tag={TAG},queue-size=1024"
                           f",num-request-queues={queues}"]
            # -cx16: QEMU 7.2 emulates cmpxchg16b wrongly and guests crash at random.
            self._process = start([
                "qemu-system-x86_64", *machine, "-cpu", "max,-cx16",
                "-device", "virtio-serial-pci", "-chardev", f"socket,id=channel,path={path}",
                "-device", "virtserialport,chardev=channel,nr=1",
                "-drive", f"file={disk},format=raw,if=virtio,readonly=on",
                "-kernel", kernel, "-initrd", initramfs,
                "-append", f"console=ttyS0 panic=-1 quiet mitigations=off {words}",
                "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-net", "none",
            ], stdin=subprocess.DEVNULL, stdout=console, stderr=console)
            listener.settimeout(30)
            try:
                self._channel, _ = listener.accept()
            except TimeoutError:
                raise Failed(f"QEMU did not start:\n{tail(self.console)}") from None

    def _line(self):
        while b"\n" not in self._received:
            readable = select.select([self._channel], [], [], 0.5)[0]
            data = self._channel.recv(65536) if readable else b""
            if not readable and self.daemon.process.poll() is None and time.monotonic() < self.deadline:
                continue
            if not data:
                what = ("went away" if readable else "has lost its daemon"
                        if self.daemon.process.poll() is not None else "is out of time")
                raise Failed(f"the {self.kind} guest {what}.\nIts console:\n{tail(self.console)}\n"
                             f"Its threads:\n{threads_of(self._process)}\n"
                             f"The daemon:\n{tail(self.daemon.log)}\n"
                             f"Its threads:\n{threads_of(self.daemon.process)}")
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return line.decode().strip("\r")

    def _expect(self, word):
        line = self._line()
        got, _, rest = line.partition(" ")
        if got != word:
            raise Failed(f"the {self.kind} guest says: {line[:2000]}\nIts console:\n{tail(self.console)}\n"
                         f"The daemon:\n{tail(self.daemon.log)}")
        return rest

    def try_run(self, script):
        """Runs bash `script` in /mnt; its (status, stdout, stderr)."""
        self._channel.sendall(b"run " + base64.b64encode(script.encode()) + b"\n")
        status, _, output = self._expect("done").partition(" ")
        out, err = (base64.b64decode(part).decode(errors="surrogateescape")
                    for part in output.split("|"))
        return int(status), out, err

    def run(self, script):
        """Runs bash `script`, which must succeed (it runs under set -e); what it printed."""
        status, out, err = self.try_run(script)
        if status != 0:
            raise Failed(f"status {status} in the {self.kind} guest of:\n{script}\n{out}{err}\n"
                         f"Its console:\n{tail(self.console, 20)}\nThe daemon:\n{tail(self.daemon.log, 20)}")
        return out

    def power_off(self):
        """Unmounts and ends the guest, both of which must work."""
        self._channel.sendall(b"off\n")
        status = self._expect("off")
        if status != "0":
            raise Failed(f"the share did not unmount: {status}\n{tail(self.console)}")
        try:
            self._process.wait(max(self.deadline - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            raise Failed(f"the {self.kind} guest does not power off:\n{tail(self.console)}") from None

    def close(self):
        if self._channel:
            self._channel.close()
        if self._process:
            end(self._process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def uml_command(cache, folder, initramfs, device, words):
    return ["env", f"LD_PRELOAD={images.uml_preload(cache)}", images.UML, "mem=512M", f"initrd={initramfs}",
            f"uml_dir={folder}", "con=null", "panic=-1", "quiet", f"virtio_uml.device={device}:26", words]


def shell(daemon, cache):
    """An interactive shell in a UML guest on this terminal, until the user leaves it."""
    initramfs = images.uml(cache, [])
    rows, columns = os.get_terminal_size()[::-1]
    words = (f"guest_kind=uml share_tag={TAG} shell={rows}x{columns} "
             f"term={os.environ.get('TERM', 'linux')}")
    saved = termios.tcgetattr(sys.stdin)
    with tempfile.TemporaryDirectory(prefix="virtiofsd-guest-") as folder:
        process = start(uml_command(cache, folder, initramfs, daemon.socket, words) + ["con0=fd:0,fd:1", "loglevel=1"])
        try:
            process.wait()
        finally:
            end(process)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)
