#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The man page's example, word for word, in QEMU: examples_test.py VIRTIOFSD MANPAGE CACHE

The words after `host#` start the daemon and the machine, those after `guest#`
mount the share. Only what the page leaves out ("...") is ours: the kernel, a
machine without KVM, a channel to run commands. The folders it names exist in
a mount namespace of this test's own. Exit status 77: can't be done here.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "guest"))
import guest  # pylint: disable=wrong-import-position
import images  # pylint: disable=wrong-import-position

SKIPPED = 77


def example(page):
    """The commands of the page's one example: for the host in order, and for the guest."""
    text = page.read_text().split(".Sh EXAMPLES", 1)[1].split(".Ed", 1)[0]
    text = text.replace("\\e\n", "\n").replace("\\&", "")
    lines = re.split(r"^(?=(?:host|guest)# )", text, flags=re.M)
    words = [" ".join(line.split()) for line in lines]
    host = [line.removeprefix("host# ") for line in words if line.startswith("host# ")]
    in_guest = [line.removeprefix("guest# ") for line in words if line.startswith("guest# ")]
    return host, in_guest


class Started:
    """What guest.Guest wants to know of a daemon."""

    def __init__(self, process, log):
        self.process = process
        self.log = log


def main():
    binary, page, cache = (Path(word).resolve() for word in sys.argv[1:4])
    if os.geteuid() != 0:
        print("skipped: needs root", file=sys.stderr)
        return SKIPPED
    if "EXAMPLES_TEST_INSIDE" not in os.environ:
        os.environ["EXAMPLES_TEST_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, "-B", *sys.argv])
    for folder in ("/var/lib", "/run"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)

    (daemon_command, machine_command), (mount_command,) = example(page)
    print(daemon_command, machine_command, mount_command, sep="\n", flush=True)
    share = Path(re.search(r"source=(\S+)", daemon_command).group(1))
    share.mkdir(parents=True)
    (share / "from-host").write_text("hello guest\n")
    tag = re.search(r"virtiofs (\S+)", mount_command).group(1)
    size = re.search(r"size=(\w+)", machine_command).group(1)
    machine = [word for word in shlex.split(machine_command)[1:] if word != "..."]
    assert shlex.split(machine_command)[0] == "qemu-system-x86_64", machine_command

    with tempfile.TemporaryDirectory(prefix="virtiofsd-rows-") as folder:
        os.symlink(binary, Path(folder) / "virtiofsd")
        log = Path(folder) / "log"
        with open(log, "wb") as output:
            daemon = Started(guest.start(["sh", "-c", f"exec {daemon_command}"], stderr=output,
                                         env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}), log)
        try:
            socket = Path(re.search(r"--socket-path=(\S+)", daemon_command).group(1))
            deadline = time.monotonic() + 20
            while not socket.is_socket():
                if daemon.process.poll() is not None or time.monotonic() > deadline:
                    raise guest.Failed(f"no socket:\n{guest.tail(log)}")
                time.sleep(0.01)
            with guest.Guest("qemu", daemon, cache, tag=tag,
                             machine=["-M", "q35,accel=tcg", "-m", size, *machine]) as booted:
                # The guest has mounted it to get here; now the page's way.
                seen = booted.run(f"cd /; umount -l /mnt; {mount_command}; cat /mnt/from-host; "
                                  "echo hello host > /mnt/from-guest")
                if seen != "hello guest\n" or (share / "from-guest").read_text() != "hello host\n":
                    raise guest.Failed(f"the share isn't what it should be: {seen}")
                booted.power_off()
            if daemon.process.wait(10) != 0:
                raise guest.Failed(f"the daemon ended with {daemon.process.returncode}:\n{guest.tail(log)}")
        except images.Missing as missing:
            print(f"skipped: {missing}", file=sys.stderr)
            return 1 if "GUESTS_REQUIRED" in os.environ else SKIPPED
        except guest.Failed as failure:
            print(failure, file=sys.stderr)
            return 1
        finally:
            guest.end(daemon.process)
    return 0


if __name__ == "__main__":
    sys.exit(main())
