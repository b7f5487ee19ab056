# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a guest must be able to do on the share, one function a case.

A case gets a booted guest with the share on /mnt and the shared folder on the
host. It ends with an exception where something isn't as it should be. `case`
names the guests it runs in, what the daemon is told, and how QEMU's device and
machine are shaped.
"""

import concurrent.futures
import contextlib
import fcntl
import os
import random
import resource
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from guest import Failed


@dataclass
class Case:
    check: Callable
    kinds: tuple
    options: tuple
    queues: int
    cpus: int


CASES = {}


def case(kinds=("uml", "qemu"), options=(), queues=1, cpus=1):
    def add(check):
        CASES[check.__name__.replace("_", "-")] = Case(check, kinds, options, queues, cpus)
        return check
    return add


def expect(condition, words):
    if not condition:
        raise Failed(words)


def on_host(folder, script):
    """Runs bash `script` in `folder` on the host."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, text=True,
                          capture_output=True, timeout=120, check=False,
                          env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"})
    expect(done.returncode == 0, f"status {done.returncode} on the host of:\n{script}\n{done.stderr}")
    return done.stdout


# Everything that can be seen of a tree, in an order of its own.
LISTING = r"""
export LC_ALL=C TZ=UTC
cd TREE
find . -printf '%P|%y|%m|%n|%U|%G|%s|%T+|%l\n' | sort
find . -type f -print0 | sort -z | xargs -0 sha256sum
"""


def same_tree(guest, host, tree="."):
    """The guest and the host see the same tree, to the nanosecond and the last byte."""
    listing = LISTING.replace("TREE", tree)
    seen, real = guest.run(listing), on_host(host, listing)
    if seen != real:
        differ = sorted(set(seen.splitlines()) ^ set(real.splitlines()))
        raise Failed("guest and host differ in:\n" + "\n".join(differ[:40]))
    return seen


MAKE_TREE = r"""
mkdir -p TREE/deep/er/still TREE/empty
cd TREE
for i in $(seq 1 150); do echo "file $i" > deep/er/file-$i; done
head -c 3000000 /dev/urandom > big
truncate -s 5M sparse
printf x | dd of=sparse bs=1 seek=4000000 conv=notrunc status=none
: > zero
ln -s deep/er link
ln -s /nowhere/at/all dangling
ln big deep/hard-link
mkfifo fifo
touch "a name with spaces" $'new\nline' 'ünï©ode' -- --dashes
chmod 4755 zero; chmod 1777 empty; chmod 600 big; chmod 750 deep
touch -d '1999-12-31 23:59:59.123456789 UTC' 'a name with spaces'
touch -h -d '2001-02-03 04:05:06.000000007 UTC' dangling
touch -d '2038-01-20 00:00:00 UTC' zero
"""


@case()
def mount(guest, host):
    """The share is mounted, shows what the host has, and takes what the guest writes."""
    (host / "from-host").write_text("hello guest\n")
    expect(guest.run("cat from-host") == "hello guest\n", "the guest reads something else")
    guest.run("echo hello host > from-guest")
    expect((host / "from-guest").read_text() == "hello host\n", "the host reads something else")
    expect("virtiofs" in guest.run("stat -f -c %T . ; grep ' /mnt ' /proc/mounts"), "not a virtiofs")
    blocks = guest.run("stat -f -c '%b %c %l %S' .")
    expect(blocks == on_host(host, "stat -f -c '%b %c %l %S' ."), "statfs differs")


@case()
def file_operations(guest, host):
    """The operations of everyday, each with what must be refused."""
    guest.run(r"""
      echo one > a; echo two >> a; [ "$(cat a)" = $'one\ntwo' ]
      mv a b; [ ! -e a ]; ln b c; [ "$(stat -c %h b)" = 2 ]; [ b -ef c ]; rm b; [ "$(stat -c %h c)" = 1 ]
      ln -s c d; [ "$(readlink d)" = c ]; [ "$(cat d)" = $'one\ntwo' ]
      mkdir -p dir/sub; touch dir/sub/file
      ! rmdir dir 2>err; grep -q 'not empty' err
      ! mkdir dir 2>err; grep -q 'File exists' err
      ! cat none 2>err; grep -q 'No such file' err
      ! cat c/x 2>err; grep -q 'Not a directory' err
      ! mv dir dir/sub 2>err
      mv dir moved; [ -f moved/sub/file ]; rm -r moved; [ ! -e moved ]
      truncate -s 10000 c; [ "$(stat -c %s c)" = 10000 ]; truncate -s 3 c; [ "$(cat c)" = one ]
      chmod 640 c; [ "$(stat -c %a c)" = 640 ]
      touch -d @1234567890.5 c; [ "$(stat -c %.1Y c)" = 1234567890.5 ]
      mkfifo pipe; [ -p pipe ]
      name=$(printf 'n%.0s' $(seq 255)); : > $name; [ -e $name ]
      ! : 2>err > ${name}n; rm $name
      head -c 5000000 /dev/urandom > source; cp source copy; cmp source copy
      dd if=source of=copy bs=64k conv=notrunc oflag=append status=none; [ "$(stat -c %s copy)" = 10000000 ]
      (umask 027; : > masked; mkdir masked-dir); [ "$(stat -c %a masked masked-dir)" = $'640\n750' ]
      for i in $(seq 300); do : > many-$i; done; [ "$(ls | grep -c many-)" = 300 ]; rm many-*
      ls > /dev/null; sync; rm err
    """)
    expect(sorted(os.listdir(host)) == ["c", "copy", "d", "masked", "masked-dir", "pipe", "source"],
           f"the host has {sorted(os.listdir(host))}")
    expect((host / "copy").read_bytes() == (host / "source").read_bytes() * 2, "copy differs on the host")


@case()
def ownership(guest, host):
    """Files belong to who made them, in the guest's own terms, and modes are held against it."""
    if os.geteuid() != 0:
        raise Skipped("only root can give files away")
    os.chmod(host, 0o777)
    guest.run(r"""
      as() { setpriv --reuid "$1" --regid "$2" --groups "$3" -- bash -euc "$4"; }
      as 1234 567 1 ': > mine; mkdir -m 700 private; : > private/secret'
      [ "$(stat -c '%u:%g' mine)" = 1234:567 ]
      ! as 1235 567 1 'cat private/secret' 2>/dev/null
      ! as 1235 568 1 'echo x >> mine' 2>/dev/null
      ! as 1235 568 1 'chmod 777 mine' 2>/dev/null
      mkdir shared; chgrp 4321 shared; chmod 2770 shared
      as 1234 4321 1 ': > shared/file; mkdir shared/dir'
      [ "$(stat -c '%u:%g' shared/file)" = 1234:4321 ]
      [ "$(stat -c %g:%a shared/dir)" = 4321:2755 ]
      ! as 1235 567 1 ': > shared/not' 2>/dev/null
      chown 77:88 mine; [ "$(stat -c '%u:%g' mine)" = 77:88 ]
      : > suid; chmod 6755 suid; chown 1234:567 suid; chmod 6755 suid
      as 1234 567 1 'echo x >> suid'; [ "$(stat -c %a suid)" = 755 ]
      chmod 1777 .; ! as 1235 568 1 'rm mine' 2>/dev/null; chmod 777 .
    """)
    owner = (host / "shared" / "file").stat()
    expect((owner.st_uid, owner.st_gid) == (1234, 4321), "the host sees another owner")


FIO = """
fio --name=verify --directory=/mnt --size={size} --bs={bs} --rw=randrw --ioengine={engine} --iodepth={depth} \
    --direct={direct} --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=1 --thread \
    --fallocate=none --output-format=terse > /tmp/fio.out || {{ cat /tmp/fio.out; exit 1; }}
"""


@case()
def fio_buffered(guest, host):
    """What fio writes through the guest's cache, it reads back."""
    guest.run(FIO.format(size="24m", bs="4k-64k", engine="psync", depth=1, direct=0))
    guest.run("echo 3 > /proc/sys/vm/drop_caches; rm /mnt/verify.0.0")
    guest.run(FIO.format(size="8m", bs="16k", engine="mmap", depth=1, direct=0))


@case()
def fio_direct(guest, host):
    """The same without the guest's cache, one at a time and many at once."""
    guest.run(FIO.format(size="8m", bs="4k-128k", engine="psync", depth=1, direct=1))
    guest.run(FIO.format(size="8m", bs="4k-128k", engine="libaio", depth=16, direct=1))


@case()
def git(guest, host):
    """git clones, commits and finds every object whole; the host's git agrees."""
    who = "-c user.name=T -c user.email=t@example.org -c safe.directory=*"
    on_host(host, f"""
      git init -q -b main origin; cd origin
      for i in $(seq 60); do mkdir -p d$((i % 7)); seq $i $((i * 20)) > d$((i % 7))/f$i; done
      git add .; git {who} commit -qm first
      echo more >> d1/f1; git {who} commit -qam second
    """)
    guest.run(f"""
      git config --global safe.directory '*'
      git clone -q file:///mnt/origin clone 2>&1
      cd clone
      git {who} log --oneline | wc -l | grep -qx 2
      echo new > new; git mv d1/f1 d1/renamed; git add .
      git {who} commit -qm third
      git checkout -q -b side HEAD~1; echo side > side; git add side; git {who} commit -qm side
      git {who} merge -q --no-edit main
      git gc -q; git fsck --full --strict 2>&1
      [ -z "$(git status --porcelain)" ]
    """)
    on_host(host / "clone", f"""
      git {who} fsck --full --strict 2>&1
      [ -z "$(git {who} status --porcelain)" ]; [ "$(git {who} rev-list --count HEAD)" = 5 ]
    """)


@case()
def sqlite(guest, host):
    """A database stays whole with a rollback journal and with a write-ahead log."""
    guest.run(r"""
      for mode in delete truncate persist wal; do
        sqlite3 $mode.db > log 2>&1 <<SQL
      pragma journal_mode=$mode;
      create table t(id integer primary key, text text);
      create index i on t(text);
      begin; with recursive n(x) as (select 1 union all select x + 1 from n where x < 3000)
      insert into t select x, hex(randomblob(20)) from n; commit;
      delete from t where id % 3 = 0;
      begin; update t set text = 'lost'; rollback;
      vacuum;
SQL
        grep -qx $mode log
        for i in 1 2; do
          (for j in $(seq 5); do sqlite3 -cmd '.timeout 20000' $mode.db "insert into t(text) values('$i-$j')"; done) &
        done
        wait
        [ "$(sqlite3 $mode.db 'pragma integrity_check; select count(*) from t;')" = $'ok\n2010' ]
      done
    """)
    for mode in ("delete", "truncate", "persist", "wal"):
        answer = on_host(host, f"sqlite3 {mode}.db 'pragma integrity_check; select count(*) from t;'")
        expect(answer == "ok\n2010\n", f"{mode}: the host's sqlite says {answer}")


@case()
def tree_compare(guest, host):
    """A tree made on the host looks the same in the guest, and the other way round."""
    on_host(host, MAKE_TREE.replace("TREE", "by-host"))
    same_tree(guest, host, "by-host")
    guest.run(MAKE_TREE.replace("TREE", "by-guest"))
    guest.run("sync")
    seen = same_tree(guest, host, "by-guest")
    expect(seen.count("\n") > 300, "the tree is smaller than it was made")


@case()
def tar_round_trip(guest, host):
    """What tar packs and unpacks in the guest is what the host had."""
    on_host(host, MAKE_TREE.replace("TREE", "tree"))
    guest.run("tar --format=posix -cSf packed.tar tree; mkdir unpacked; tar -xpSf packed.tar -C unpacked; sync")
    listing = LISTING.replace("TREE", "{}")
    before, after = (on_host(host, listing.format(tree)) for tree in ("tree", "unpacked/tree"))
    expect(before == after, "the unpacked tree differs:\n" + "\n".join(
        sorted(set(before.splitlines()) ^ set(after.splitlines()))[:40]))
    on_host(host, "tar -df packed.tar")


EXERCISE = r"""
for seed in SEEDS; do
  mkdir run-$seed
  (cd run-$seed; exercise $seed 1000)
done
sync
"""


def exercise(guest, host, first):
    """Every way to change a file and to look at it, mixed at random, ends in what it should."""
    guest.run(EXERCISE.replace("SEEDS", " ".join(str(first + i) for i in range(4))))
    # Times may differ with --writeback: the guest's are its own.
    listing = "sha256sum run-*/*; stat -c '%n %s' run-*/*"
    seen, real = guest.run(listing), on_host(host, listing)
    expect(seen == real, f"guest and host differ:\n{seen}\n{real}")


@case(kinds=("uml",), options=("--allow-direct-io",))
def exercise_auto(guest, host):
    exercise(guest, host, 10)


@case(kinds=("uml",), options=("--cache=none",))
def exercise_none(guest, host):
    exercise(guest, host, 20)


@case(kinds=("uml",), options=("--cache=always", "--writeback"))
def exercise_writeback(guest, host):
    exercise(guest, host, 30)


@case()
def special_calls(guest, host):
    """O_TMPFILE, birth times, file handles, renameat2, holes, file attributes."""
    guest.run(f"mkdir special; special special {int(time.time()) - 3600}")
    if subprocess.run(["chattr", "+d", str(host)], capture_output=True, check=False).returncode == 0:
        guest.run(": > flags; chattr +d flags; lsattr flags | grep -q '^[^ ]*d'")
        expect("d" in on_host(host, "lsattr flags").split()[0], "the host doesn't see the attribute")


@case()
def file_handles(guest, host):
    """Handles outlive what the guest remembers of a file, under whatever name it is, and a mount, but not the file."""
    if on_host(host, "stat -f -c %T .").strip() == "overlayfs":
        raise Skipped("birth times don't identify files on overlayfs")
    guest.run(r"""
      mkdir handles; cd handles
      list() { handles "$1" /mnt "/tmp/$2"; }
      remount() { cd /; umount /mnt; mount -t virtiofs share /mnt; cd /mnt/handles; }

      echo "just made, and again"
      handles make young 20 /tmp/young
      list open young; list open young
      echo "old"
      handles make old 20 /tmp/old
      sleep 0.2
      list open old; list open old
      echo "renamed"
      for file in young/*; do mv $file $file.renamed; done
      list open young
      mkdir elsewhere; mv old/* elsewhere; mv old elsewhere
      list open old
      echo "another link"
      for file in young/*; do ln $file $file.link; done
      list open young
      rm young/*.renamed
      list open young
      echo "mounted again"
      remount
      list open young; list open old
      echo "mounted again, with folders renamed"
      mkdir -p a/b
      handles make a/b/c 10 /tmp/deep
      mv a/b/c a/b/d; mv a e
      remount
      list open deep
      echo "removed"
      rm -r e young
      list stale deep; list stale young
      list open old
      rm -r elsewhere
      list stale old
    """)


SEEN = r"""
  for name in old gone new; do
    if [ -e $name ]; then stat -c '%n %s' $name; else echo "$name none"; fi
  done
  cat old; ls
"""
BEFORE = "old 4\ngone 4\nnew none\nnow\ngone\nold\n"
AFTER = "old 10\ngone none\nnew 4\nnow later\nnew\nold\n"


def set_before(host):
    (host / "new").unlink(missing_ok=True)
    (host / "gone").write_text("here")
    (host / "old").write_text("now\n")


def set_after(host):
    """What the host does behind the guest's back: other content, a name less, a name more."""
    (host / "old").write_text("now later\n")
    (host / "gone").unlink()
    (host / "new").write_text("made")


@case(options=("--cache=none",))
def cache_none(guest, host):
    """Every change on the host is seen at once."""
    for _ in range(3):
        set_before(host)
        expect(guest.run(SEEN) == BEFORE, "the guest sees something else")
        set_after(host)
        expect(guest.run(SEEN) == AFTER, "a change on the host isn't seen at once")


@case(options=("--cache=auto",))
def cache_auto(guest, host):
    """A change on the host is seen a second later at most, and nothing is asked twice within it."""
    kept = False
    for _ in range(12):
        set_before(host)
        time.sleep(1.1)
        begun = time.monotonic()
        expect(guest.run(SEEN) == BEFORE, "an older change isn't seen")
        set_after(host)
        seen = guest.run("stat -c %s old; if [ -e gone ] && [ ! -e new ]; then echo kept; fi")
        # On a slow machine the second may be over; then try again.
        if time.monotonic() - begun < 0.9:
            expect(seen == "4\nkept\n", f"the guest asks again within the second: {seen}")
            kept = True
        time.sleep(1.1)
        seen = guest.run(SEEN)
        expect(seen == AFTER, f"a second later the guest sees:\n{seen}")
        if kept:
            return
    # What else there is to see was seen each time; the device tests know the timeout itself.
    raise Skipped("never fast enough to see that a second is kept")


@case(options=("--cache=always",))
def cache_always(guest, host):
    """A change on the host isn't seen until the guest forgets what it knows."""
    set_before(host)
    # Twice: a listing that asks the host makes the guest look at the directory's times once more.
    for _ in range(2):
        expect(guest.run(SEEN) == BEFORE, "the guest sees something else")
    set_after(host)
    time.sleep(2.5)
    seen = guest.run(SEEN)
    expect(seen == BEFORE, f"the guest asks again and sees:\n{seen}")
    guest.run("echo 3 > /proc/sys/vm/drop_caches")
    seen = guest.run(SEEN)
    expect(seen == AFTER, f"with its caches dropped the guest sees:\n{seen}")


@case(options=("-o", "no_flock,no_posix_lock"))
def local_locks(guest, host):
    """Locks the guest keeps to itself."""
    guest.run("mkdir locks; locks locks")


@case(options=("-o", "flock,posix_lock"))
def remote_locks(guest, host):
    """Locks the host is told of: the same for two guest processes, and between guest and host."""
    guest.run("mkdir locks; locks locks no-signals")
    guest.run(r"""
      locks hold file > /tmp/held 2>&1 & echo $! > /tmp/holder
      for i in $(seq 100); do grep -q held /tmp/held && exit 0; sleep 0.1; done; cat /tmp/held; exit 1
    """)
    with open(host / "file", "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            raise Failed("the host doesn't see the guest's lock")
        guest.run("kill $(cat /tmp/holder); while kill -0 $(cat /tmp/holder) 2>/dev/null; do sleep 0.1; done")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        expect(guest.try_run("timeout 1 locks hold file")[0] != 124, "the guest doesn't see the host's lock")


@case(kinds=("qemu",), queues=4, cpus=2)
def four_queues(guest, host):
    """A device with four request queues serves them all at once."""
    guest.run("for i in 1 2 3 4; do (mkdir w$i; cd w$i; for j in $(seq 40); do echo $i > f$j; mv f$j g$j; done) & done; wait")
    guest.run(FIO.format(size="4m", bs="4k-64k", engine="psync", depth=1, direct=1) .replace(
        "--thread", "--thread --numjobs=4"))
    guest.run("sync")
    expect(len(list(host.glob("w?/g*"))) == 160, "files are missing on the host")
    same_tree(guest, host)


@case(kinds=("uml",))
def posix(guest, host):
    """Thousands of system calls do on the share what they do on a file system of the guest's own."""
    if os.geteuid() != 0:
        raise Skipped("only root can give files away")
    if on_host(host, "stat -f -c %T .").strip() == "overlayfs":
        raise Skipped("overlayfs refuses what other file systems do")
    differ = guest.run(r"""
      mkdir posix /tmp/posix; posix posix > /tmp/shared; posix /tmp/posix > /tmp/own
      [ "$(wc -l < /tmp/own)" -gt 5000 ]
      diff -U1 /tmp/own /tmp/shared || true
    """)
    expect(not differ, "the guest's own file system (-) and the share (+) differ:\n"
           + "\n".join(differ.splitlines()[:60]))


@case(kinds=("uml",), options=("--xattr", "--modcaps=+sys_admin:+linux_immutable"))
def posix_privileged(guest, host):
    """The same for what the daemon needs more rights for: trusted attributes, immutable files."""
    if os.geteuid() != 0:
        raise Skipped("only root can give files away")
    differ = guest.run(r"""
      mkdir posix /tmp/posix; posix posix xattrs immutable > /tmp/shared
      posix /tmp/posix xattrs immutable > /tmp/own; diff -U1 /tmp/own /tmp/shared || true
    """)
    expect(not differ, "the guest's own file system (-) and the share (+) differ:\n"
           + "\n".join(differ.splitlines()[:60]))


def to_host(guest, host, program):
    """A guest program for the host, by way of the share."""
    guest.run(f"cp $(command -v {program}) {program}")
    return host / program


def daemon_processes(guest):
    """The daemon's processes: the one that was started and its helpers."""
    pids, todo = [], [guest.daemon.process.pid]
    while todo:
        pids.append(todo.pop())
        for children in Path(f"/proc/{pids[-1]}/task").glob("*/children"):
            todo += map(int, children.read_text().split())
    return pids


def raise_storm(guest, host):
    """Many processes in one tree: what is left is whole, the same on both sides, and can be removed."""
    program = to_host(guest, host, "storm")
    guest.run("mkdir tree; echo 3 > /proc/sys/vm/drop_caches; ls > /dev/null")

    def count():
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in daemon_processes(guest))

    before = count()
    guest.run("storm tree 1 4 5; sync")
    on_host(host, f"{program} tree check")
    same_tree(guest, host, "tree")
    guest.run("rm -r tree; mkdir tree")
    for _ in range(50):  # FORGETs are on their way
        guest.run("echo 3 > /proc/sys/vm/drop_caches")
        if count() <= before + 4:
            return
        time.sleep(0.1)
    raise Failed(f"{count()} descriptors where {before} were")


@case(options=("--xattr", "--inode-descriptors=16"), queues=4, cpus=2)
def storm_cold(guest, host):
    """Names made, moved and removed by many at once, with hardly a descriptor for an inode."""
    raise_storm(guest, host)


def meanwhile(work, what):
    """Does `what` again and again, four times a second, until `work` is done; the sum of what it returns."""
    total = 0
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # Not the other way round: a process that is started doesn't outlive the thread.
        done = pool.submit(work)
        while not concurrent.futures.wait([done], timeout=0.25 + 0.03 * (total % 5)).done:
            total += what()
        done.result()
    return total


def kill_worker(guest):
    """Kills the process that serves, if there is one just now; how many that were."""
    processes = daemon_processes(guest)
    with contextlib.suppress(ProcessLookupError):
        if len(processes) == 3:
            os.kill(processes[-1], signal.SIGKILL)
            return 1
    return 0


def storms_and_exercise(guest, seeds):
    for seed in range(1, 4):
        guest.run(f"storm tree {seed} 4 5; sync")
    guest.run(EXERCISE.replace("SEEDS", seeds))


@case(options=("--xattr",), queues=2, cpus=2)
def dying_workers(guest, host):
    """Whatever is being done when the process dies that serves, the guest doesn't notice."""
    program = to_host(guest, host, "storm")
    guest.run("mkdir tree")
    deaths = meanwhile(lambda: storms_and_exercise(guest, "40 41"), lambda: kill_worker(guest))
    expect(deaths >= 5, f"only {deaths} deaths")
    on_host(host, f"{program} tree check")
    same_tree(guest, host, "tree")


@case(options=("--xattr", "-o", "posix_lock,flock"), queues=2, cpus=2)
def upgrades(guest, host):
    """One daemon after the other takes over, whatever is being done: the guest doesn't notice."""
    program = to_host(guest, host, "storm")
    guest.run("""
        mkdir tree
        echo still here > deleted
        (exec 9<> deleted; rm deleted; exec sleep 1000) < /dev/null > /dev/null 2>&1 &
        echo $! > open-pid
        flock -F locked sleep 1000 < /dev/null > /dev/null 2>&1 &
        echo $! > lock-pid
        while flock -n locked true || test -e deleted; do sleep 0.05; done""")

    def hand_over():
        guest.daemon.hand_over()
        return 1

    times = meanwhile(lambda: storms_and_exercise(guest, "50 51"), hand_over)
    expect(times >= 5, f"only {times} upgrades")
    guest.run("""
        test "$(cat /proc/$(cat open-pid)/fd/9)" = "still here"
        if flock -n locked true; then exit 1; fi
        kill $(cat open-pid lock-pid)
        flock -w 5 locked true""")
    on_host(host, f"{program} tree check")
    same_tree(guest, host, "tree")


class Meddler:
    """Changes files of a folder on the host in a thread; each file has lines that are its own."""

    def __init__(self, folder):
        self._folder = folder
        self._random = random.Random(1)
        self._made = 0
        self._error = None
        self._stop = threading.Event()
        for number in range(12):
            self._create(folder / f"file-{number}")
        self._thread = threading.Thread(target=self._run)

    def _create(self, path):
        self._made += 1
        path.write_bytes(b"line of %7d\n" % self._made * self._random.randrange(1, 5000))

    def _change(self):
        one, other = (self._folder / f"file-{self._random.randrange(12)}" for _ in range(2))
        match self._random.randrange(8):
            case 0:
                self._create(self._folder / "new")
                os.rename(self._folder / "new", one)
            case 1:
                os.rename(one, other)
            case 2:
                one.unlink()
                self._create(one)
            case 3:
                one.unlink()
            case 4:
                os.truncate(one, 16 * self._random.randrange(3000))
            case 5:
                with open(one, "r+b") as file:
                    line = file.read(16)
                    file.seek(0, os.SEEK_END)
                    file.write(line * 300)
            case 6:
                os.rename(one, self._folder / "aside")
                os.rename(other, one)
                os.rename(self._folder / "aside", other)
            case _:
                if not one.exists():
                    self._create(one)

    def _run(self):
        try:
            while not self._stop.wait(0.003):
                with contextlib.suppress(FileNotFoundError):
                    self._change()
        except OSError as error:
            self._error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        expect(self._error is None, f"the host could not do its part: {self._error}")


@case()
def meddling_host(guest, host):
    """While the host replaces, renames, truncates and removes, a file never shows what is another's."""
    (host / "shared").mkdir()
    with Meddler(host / "shared"):
        guest.run("timeout 60 coherence shared 5")
    guest.run("sync")
    time.sleep(1.2)  # then the guest knows it all
    same_tree(guest, host)


@case(options=("--xattr",))
def refused(guest, host):
    """What is refused, and how, is as on the host's file system."""
    if os.geteuid() != 0:
        raise Skipped("devices and owners are root's")
    program = to_host(guest, host, "errnos")
    guest.run("mkdir there")
    (host / "here").mkdir()
    there, here = guest.run("errnos there").splitlines(), on_host(host, f"{program} here").splitlines()
    differ = [f"guest {one}\n host {other}" for one, other in zip(there, here) if one != other]
    expect(not differ and len(there) == len(here), "\n".join(differ) or "one of them ended early")


@case()
def lost_pages(guest, host):
    """Of pages written back, the host takes a part: the guest is told."""
    with open(host / "file", "wb") as file:
        file.truncate(8 * 4096)
    for pid in daemon_processes(guest):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (5 * 4096, 5 * 4096))
    guest.run("lost file")


class Skipped(Exception):
    """The case can't be run here; the text says why."""
