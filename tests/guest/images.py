# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a test guest boots from: a kernel, an initramfs, and for QEMU a root disk.

Everything is made from packages of the host, without root, into a cache
folder, under names that carry a digest of what went in: a changed input makes
a new file, an unchanged one costs nothing, and processes that need the same
file at the same time wait for the one that makes it.
"""

import contextlib
import fcntl
import glob
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
UML = "/usr/bin/linux.uml"
UML_MODULES = "/usr/lib/uml/modules"

# Bare names are looked up in the usual folders; whole paths are taken as they are.
TOOLS = """
    bash sh env fio git git-upload-pack git-receive-pack sqlite3 tar find xargs
    cat chgrp chmod chown cmp comm cp cut date dd df diff dirname du echo expr false
    head id install ln ls md5sum mkdir mkfifo mknod mktemp mv nproc od paste
    printf pwd readlink rm rmdir sed seq sha256sum sleep sort split stat stty
    sync tail tee test timeout touch tr true kill truncate uname uniq wc yes
    grep awk flock mount umount lsattr chattr setpriv fallocate
    /usr/lib/git-core/git-sh-setup
    /usr/share/git-core/templates
    /etc/passwd /etc/group
""".split()
SEARCH = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]


class Missing(Exception):
    """A package that guests need is not installed; the text says which."""


@contextlib.contextmanager
def made_once(path):
    """Yields a name to write to, or None when `path` is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            yield None
            return
        draft = path.with_name(path.name + ".draft")
        try:
            yield draft
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)


def digest(*parts):
    sum_ = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            info = part.stat()
            part = f"{part} {info.st_size} {info.st_mtime_ns}"
        sum_.update(part if isinstance(part, bytes) else part.encode())
        sum_.update(b"\0")
    return sum_.hexdigest()[:12]


class Cpio:
    """An archive in the form the kernel unpacks as its first root ("newc")."""

    def __init__(self):
        self._bytes = bytearray()
        self._count = 0

    def add(self, name, mode, data=b"", device=(0, 0)):
        self._count += 1
        name = name.encode() + b"\0"
        fields = [self._count, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0]
        self._bytes += b"070701" + b"".join(b"%08x" % field for field in fields)
        for part in (name, data):
            self._bytes += part
            self._bytes += b"\0" * (-len(self._bytes) % 4)

    def folder(self, name):
        self.add(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        self.add(name, stat.S_IFREG | mode, data)

    def finish(self):
        self.add("TRAILER!!!", 0)
        return bytes(self._bytes)


def module_files(folder, wanted):
    """The .ko files of `wanted` below modules folder `folder`, each after what it needs."""
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        needs[name] = rest.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    ordered = []

    def visit(path):
        for other in needs[path]:
            visit(other)
        if path not in ordered:
            ordered.append(path)

    for module in wanted:
        if module in by_name:  # else it is built in
            visit(by_name[module])
    return [folder / path for path in ordered]


def initramfs(cache, modules, programs):
    """An initramfs with busybox, `modules` (in this order) and `programs` below /programs."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        raise Missing("busybox-static is not installed")
    init = HERE / "init"
    path = cache / f"initramfs-{digest(busybox, init, *modules, *programs)}"
    with made_once(path) as draft:
        if draft:
            archive = Cpio()
            for folder in ("bin", "dev", "modules", "programs"):
                archive.folder(folder)
            archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
            archive.file("bin/busybox", busybox.read_bytes(), 0o755)
            archive.file("init", init.read_bytes(), 0o755)
            for module in modules:
                archive.file(f"modules/{module.name}", module.read_bytes())
            archive.file("modules/order", "\n".join(m.name for m in modules).encode())
            for program in programs:
                archive.file(f"programs/{program.name}", program.read_bytes(), 0o755)
            draft.write_bytes(archive.finish())
    return path


def uml(cache, programs):
    """The initramfs of the User Mode Linux guest."""
    if not os.access(UML, os.X_OK):
        raise Missing("user-mode-linux is not installed")
    releases = sorted(Path(UML_MODULES).glob("*/modules.dep"))
    if not releases:
        raise Missing(f"no kernel modules below {UML_MODULES}")
    return initramfs(cache, module_files(releases[-1].parent, ["fuse", "virtiofs"]), programs)


def uml_preload(cache):
    """The library that lets User Mode Linux run on processors newer than it."""
    source = HERE / "uml_xstate.c"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise Missing("gcc is not installed")
    path = cache / f"uml-xstate-{digest(source)}.so"
    with made_once(path) as draft:
        if draft:
            subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o", draft, source], check=True)
    return path


def qemu(cache, programs):
    """Kernel, initramfs and root disk of the QEMU guest."""
    if not shutil.which("qemu-system-x86_64"):
        raise Missing("qemu-system-x86 is not installed")
    kernels = sorted(glob.glob("/boot/vmlinuz-*-cloud-amd64"), key=lambda k: [
        int(number) for number in re.findall(r"\d+", k)])
    if not kernels:
        raise Missing("linux-image-cloud-amd64 is not installed")
    kernel = Path(kernels[-1])
    modules = Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")
    files = module_files(modules, ["virtio_pci", "virtio_blk", "virtio_console", "fuse", "virtiofs"])
    return kernel, initramfs(cache, files, programs), root_disk(cache)


def closure(names):
    """The files `names` stand for, with the libraries they load, as {path in the guest: file here}."""
    files = {}
    waiting = []
    for name in names:
        if name.startswith("/"):
            found = name
        else:
            found = next((f"{d}/{name}" for d in SEARCH if os.path.exists(f"{d}/{name}")), None)
        if found is None or not os.path.exists(found):
            raise Missing(f"{name} is not installed")
        if os.path.isdir(found):
            waiting += [str(path) for path in Path(found).rglob("*") if path.is_file()]
        else:
            waiting.append(found)
    for path in waiting:
        # /bin/x and /usr/bin/x are one place since /bin became a link.
        place = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if place in files:
            continue
        files[place] = os.path.realpath(path)
        with open(path, "rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        listing = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        waiting += re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listing, re.MULTILINE)
    return files


def root_disk(cache):
    """An ext4 image with TOOLS in it."""
    files = closure(TOOLS)
    path = cache / f"root-{digest(*(Path(file) for file in files.values()), *files)}.ext4"
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin")
    if not mke2fs:
        raise Missing("e2fsprogs is not installed")
    with made_once(path) as draft:
        if draft:
            with tempfile.TemporaryDirectory(dir=cache) as stage:
                stage = Path(stage)
                for folder in "usr/bin usr/sbin usr/lib usr/lib64 proc sys dev tmp run mnt etc".split():
                    (stage / folder).mkdir(parents=True)
                for folder in "bin sbin lib lib64".split():
                    (stage / folder).symlink_to(f"usr/{folder}")
                for place, file in files.items():
                    target = stage / place.lstrip("/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(file, target)
                total = sum(os.path.getsize(file) for file in files.values())
                size = total // 1024 * 5 // 4 + 16 * 1024
                subprocess.run([mke2fs, "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0",
                                "-d", stage, draft, f"{size}k"],
                               check=True, stdout=subprocess.DEVNULL)
    return path
