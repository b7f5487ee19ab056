#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Writes the seed inputs of corpus/, named for what they say.

Only for seeds: a file that a fuzzer found is committed beside them as it is.
An input is a row of small decisions; the target's source says which
(fuzz/*_fuzz.cc, input.h). Run it again after changing one of the two.
"""

import pathlib
import struct

CORPUS = pathlib.Path(__file__).parent / "corpus"


def seed(target, name, *parts):
    directory = CORPUS / target
    directory.mkdir(parents=True, exist_ok=True)
    data = b"".join(p if isinstance(p, bytes) else p.encode() for p in parts)
    (directory / name).write_bytes(data)


def u8(*values):
    return bytes(v & 0xFF for v in values)


def u16(value):
    return struct.pack("<H", value & 0xFFFF)


def u32(value):
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value):
    return struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


# ---- reader_name: first half what to take, second half what from


def reader(name, program, data):
    # Padding takes single bytes, or is what is left in the end.
    size = max(len(program), len(data))
    seed("reader_name", name, program.ljust(size, b"\0"), data.ljust(size, b"\0"))


reader("one-name", u8(6), b"file\0")
reader("name-without-nul", u8(6), b"file")
reader("name-with-slash", u8(6), b"a/b\0")
reader("dot-and-dotdot", u8(6, 6), b".\0..\0")
reader("name-of-255-bytes", u8(6), b"n" * 255 + b"\0")
reader("name-of-256-bytes", u8(6), b"n" * 256 + b"\0")
reader("empty-name", u8(6), b"\0")
reader("numbers-then-name", u8(0, 1, 2, 6), b"12345678901234567890" + b"x\0")
reader("prefixes", u8(3, 0, 3, 4, 3, 8, 3, 9), b"a" * 24)
reader("more-than-there-is", u8(4, 23, 4, 10, 5, 200), b"a" * 16)

# ---- guest_memory


def region(start, guest, vmm_start, vmm, size, touching=False):
    return u8(0, start, guest, vmm_start, vmm, size, 0 if touching else 1)


def query(start, offset, size, alignment=0):
    return u8(2, start) + u16(offset + 0x100) + u8(size, alignment)


seed("guest_memory", "one-region", region(1, 0, 2, 0, 5), query(1, 0, 64), query(1, 0xFFF, 2))
seed("guest_memory", "two-that-touch", region(1, 0, 1, 0, 5), region(1, 0, 1, 0, 5, True),
     query(1, 0xFC0, 0x80), query(1, 0xFC0, 0x80, 3))
seed("guest_memory", "two-that-overlap", region(1, 0, 1, 0, 5), region(1, 16, 2, 0, 5))
seed("guest_memory", "end-of-address-space", region(7, 0, 7, 0, 5), query(7, 0xFC0, 0x80),
     query(7, 0xFC0, 0x40))
seed("guest_memory", "past-the-end-of-address-space", region(7, 1, 0, 0, 5), region(0, 0, 7, 9, 5))
seed("guest_memory", "empty-region", region(0, 0, 0, 0, 0), query(0, 0, 0))
seed("guest_memory", "added-and-removed", region(1, 0, 1, 0, 5), region(3, 0, 3, 0, 6),
     u8(1, 0, 0), u8(1, 0, 1), query(1, 0, 8), query(3, 0, 8))
seed("guest_memory", "size-of-4-gib", region(0, 0, 0, 0, 5), u8(2, 0) + u16(0x100) + u8(0xFF, 19,
    0))

# ---- split_ring, packed_ring (ring_target.h)

SIZES = [1, 2, 3, 4, 7, 8, 16, 64, 256, 100, 1024, 32768]
INDIRECT, EVENT, ON_EMPTY, IN_ORDER, LOG, GUEST_ADDRESSES, ODD, BASE = (1 << i for i in range(8))
NEXT, WRITE, TABLE, WORD, EDGE = 8, 16, 32, 64, 128


def ring(size, options=0, base=None):
    return u8(SIZES.index(size), options) + (b"" if base is None else u32(base))


def entry(where, size, flags=0, following=0):
    """A descriptor of `size` bytes at offset `where` of the buffers."""
    return u8(4 | flags) + u16(where) + u8(size, following)


def split_entry(slot, described):
    return u8(1) + described + u8(slot)


def available(head):
    return u8(4, head)


def packed_entry(described):
    return u8(1) + described


POP, SIGNAL, PEEK = u8(8), u8(12), u8(14)


def push(which, written=1):
    return u8(11, which, written)


def stop_and_start(base=None):
    return u8(15, 1) if base is None else u8(15, 0) + u32(base)


TWO = [entry(0, 40, NEXT, 1), entry(64, 80, WRITE)]
split = lambda name, *parts: seed("split_ring", name, *parts)
split("request-and-reply", ring(8), split_entry(0, TWO[0]), split_entry(1, TWO[1]), available(0),
      PEEK, POP, push(0), SIGNAL)
split("chain-loops", ring(4), split_entry(0, entry(0, 8, NEXT, 0)), available(0), POP, POP)
split("readable-behind-writable", ring(4), split_entry(0, entry(0, 8, NEXT | WRITE, 1)),
      split_entry(1, entry(0, 8)), available(0), POP)
split("head-past-the-ring", ring(4), u8(4, 0xFF) + u16(4), POP)
split("index-jumps", ring(4), u8(6) + u16(5), POP, stop_and_start(), POP)
split("across-two-regions", ring(4), split_entry(0, u8(WRITE, 16, 64, 0)), available(0), POP,
      push(0), SIGNAL)
split("buffer-nowhere", ring(4), split_entry(0, u8(2) + u64(0x40) + u8(8, 0)), available(0), POP,
      push(0))
split("past-the-end-of-memory", ring(4), split_entry(0, u8(1, 4, 8, 0)), available(0), POP, push(0))
split("reply-into-the-ring", ring(4), split_entry(0, entry(0, 64, NEXT, 1)),
      split_entry(1, u8(3 | WRITE) + u16(0x1000) + u8(64, 0)), available(0), POP, push(0), POP)
split("indirect", ring(4, INDIRECT), u8(3) + u16(0x100) + entry(0, 8, NEXT, 1),
      u8(3) + u16(0x110) + entry(64, 8, WRITE), split_entry(0, entry(0x100, 2, TABLE)),
      available(0), POP, push(0))
split("indirect-not-negotiated", ring(4), split_entry(0, entry(0x100, 2, TABLE)), available(0), POP)
split("indirect-in-indirect", ring(4, INDIRECT), u8(3) + u16(0x100) + entry(0, 1, TABLE),
      split_entry(0, entry(0x100, 1, TABLE)), available(0), POP)
split("indirect-loops", ring(4, INDIRECT), u8(3) + u16(0x100) + entry(0, 8, NEXT, 0),
      split_entry(0, entry(0x100, 2, TABLE)), available(0), POP)
split("indirect-table-of-odd-size", ring(4, INDIRECT),
      split_entry(0, u8(4 | TABLE | EDGE) + u16(0) + u8(11, 0)), available(0), POP)
split("four-gibibytes", ring(4), split_entry(0, u8(4 | NEXT | EDGE) + u16(0) + u8(19, 1)),
      split_entry(1, u8(4 | EDGE) + u16(0) + u8(19, 0)), available(0), POP)
split("more-than-the-ring-has", ring(2), split_entry(0, entry(0, 8)), available(0), available(0),
      POP, POP, available(0), POP)
split("event-index", ring(8, EVENT), split_entry(0, entry(0, 8)), available(0), POP, push(0),
      u8(7) + u16(0), SIGNAL, u8(13, 0), u8(13, 1), available(0), POP, push(0), SIGNAL)
split("in-order", ring(8, IN_ORDER), split_entry(0, entry(0, 8)), split_entry(1, entry(8, 8)),
      available(0), available(1), POP, POP, push(1), push(0), SIGNAL)
split("dirty-log", ring(8, LOG), u8(18, 1, 0), split_entry(0, entry(0, 80, WRITE)), available(0),
      POP, push(0), SIGNAL, u8(17, 1, 0), u8(13, 0), u8(18, 0))
split("dirty-log-too-short", ring(8, LOG), u8(18, 1, 1), split_entry(0, entry(0, 80, WRITE)),
      available(0), POP, push(0))
split("notify-on-empty", ring(8, ON_EMPTY), split_entry(0, entry(0, 8)), available(0),
      u8(7) + u16(1), POP, push(0), SIGNAL)
split("memory-swapped-in-flight", ring(8), split_entry(0, TWO[0]), split_entry(1, TWO[1]),
      available(0), POP, u8(16, 1), push(0), available(0), POP, push(0))
split("ring-out-of-memory-and-back", ring(8), split_entry(0, TWO[0]), available(0), u8(16, 2), POP,
      PEEK, u8(16, 3), POP, u8(16, 0), POP, push(0))
split("stopped-and-started", ring(8), split_entry(0, entry(0, 8)), available(0), POP,
      stop_and_start(), available(0), POP, push(0), stop_and_start(0xFFFF), POP)
split("index-wraps", ring(4, BASE, 0xFFFE), split_entry(0, entry(0, 8)), available(0),
      available(0), available(0), POP, POP, POP, push(0), push(1), push(2), SIGNAL)
split("guest-addresses", ring(8, GUEST_ADDRESSES), split_entry(0, entry(0, 8)), available(0), POP,
      push(0))
split("ring-at-the-end-of-a-region", ring(8, ODD), u16(0x7F80), u16(0), u16(0), u8(0), POP)
split("ring-misaligned", ring(8, ODD), u16(1), u16(1), u16(1), u8(0), POP)
split("disabled", ring(8), split_entry(0, entry(0, 8)), available(0), u8(17, 0, 1), POP, PEEK,
      u8(17, 0, 0), POP, push(0))
split("reset", ring(8), split_entry(0, entry(0, 8)), available(0), POP, u8(19), available(0), POP)
split("largest-ring", ring(32768, EVENT | INDIRECT), split_entry(0, entry(0, 8)), available(0),
      POP, push(0), SIGNAL)
split("size-not-a-power-of-two", ring(7), POP)

packed = lambda name, *parts: seed("packed_ring", name, *parts)
packed("request-and-reply", ring(8), packed_entry(TWO[0]), packed_entry(TWO[1]), PEEK, POP,
       push(0), SIGNAL)
packed("more-follows-than-there-is", ring(4), *[packed_entry(entry(0, 8, NEXT))] * 5, POP)
packed("readable-behind-writable", ring(4), packed_entry(entry(0, 8, NEXT | WRITE)),
       packed_entry(entry(0, 8)), POP)
packed("slots-still-held", ring(2), packed_entry(entry(0, 8)), POP, packed_entry(entry(0, 8, NEXT)),
       packed_entry(entry(0, 8, NEXT)), POP)
packed("wraps-around", ring(3), packed_entry(entry(0, 8)), packed_entry(entry(0, 8)), POP, POP,
       push(0), push(1), packed_entry(TWO[0]), packed_entry(TWO[1]), POP, push(0), SIGNAL)
packed("ring-of-one", ring(1), packed_entry(entry(0, 8)), POP, push(0), packed_entry(entry(0, 8)),
       POP, push(0), SIGNAL)
packed("indirect", ring(4, INDIRECT), u8(3) + u16(0x100) + entry(0, 8),
       u8(3) + u16(0x110) + entry(64, 8, WRITE), packed_entry(entry(0x100, 2, TABLE)), POP, push(0))
packed("indirect-with-more", ring(4, INDIRECT), packed_entry(entry(0x100, 2, TABLE | NEXT)), POP)
packed("indirect-not-negotiated", ring(4), packed_entry(entry(0x100, 2, TABLE)), POP)
packed("event-at-slot", ring(4, EVENT), packed_entry(entry(0, 8)), POP, push(0),
       u8(7) + u16(0x8000) + u8(2), SIGNAL, packed_entry(entry(0, 8)), POP, push(0), SIGNAL)
packed("event-off", ring(4), packed_entry(entry(0, 8)), u8(7) + u16(0) + u8(1), POP, push(0),
       SIGNAL, u8(13, 0), u8(13, 1))
packed("event-past-the-ring", ring(4, EVENT), packed_entry(entry(0, 8)),
       u8(7) + u16(0x7FFF) + u8(2), POP, push(0), SIGNAL, packed_entry(entry(0, 8)), POP, push(0),
       SIGNAL)
packed("notify-on-empty", ring(4, ON_EMPTY), packed_entry(entry(0, 8)), u8(7) + u16(0) + u8(1), POP,
       push(0), SIGNAL)
packed("in-order", ring(4, IN_ORDER), packed_entry(entry(0, 8)), packed_entry(entry(8, 8)), POP,
       POP, push(1), push(0), SIGNAL)
packed("dirty-log", ring(8, LOG), u8(18, 1, 0), packed_entry(entry(0, 80, WRITE)), POP, push(0),
       SIGNAL, u8(13, 0), u8(13, 1))
packed("base-past-the-ring", ring(4, BASE, 0x80058005), POP)
packed("base-in-mid-ring", ring(4, BASE, 0x80028002), packed_entry(entry(0, 8)), POP, push(0))
packed("memory-swapped-in-flight", ring(4), packed_entry(entry(0, 8)), POP, u8(16, 1),
       packed_entry(entry(0, 8)), POP, push(0), push(1), u8(16, 2), POP, PEEK, u8(16, 0), POP)
packed("stopped-and-started", ring(4), packed_entry(entry(0, 8)), POP, stop_and_start(),
       packed_entry(entry(0, 8)), POP, push(0), stop_and_start(0), POP)
packed("guest-addresses", ring(4, GUEST_ADDRESSES | LOG), u8(18, 1, 0), packed_entry(entry(0, 8)),
       POP, push(0))
packed("reset", ring(4), packed_entry(entry(0, 8)), POP, u8(19), packed_entry(entry(0, 8)), POP)
packed("scribbles", ring(8), u8(0) + u32(0) + u8(63) + bytes(range(62)), POP, POP, POP)

# ---- vhost_user_message

LOUD, CHANNEL, NEGOTIATED, VMM_ADDRESSES, BARE = 1, 2, 4, 8, 16
REPLY, WRONG_SIZE, WRONG_FLAGS, CUT, RAW = 1, 2, 4, 8, 0xE0


def said(request, payload=b"", fds=0, shape=REPLY, size=b""):
    """Message `request`; `size` are the choices usual_size makes for it."""
    return u8(0, shape, request) + size + u8(fds) + payload


def conversation(name, options, *messages):
    seed("vhost_user_message", name, u8(options), *messages)


every = [
    said(1), said(2, u64(1 << 32)), said(3), said(4),
    said(5, u32(1) + u32(0) + u64(0) + u64(4096) + u64(0) + u64(0), 1, size=u8(1)),
    said(6, u64(4096) + u64(0), 1), said(7, u64(0), 1), said(8, u32(0) + u32(128)),
    said(9, u32(0) + u32(1) + u64(0) * 4), said(10, u32(0) + u32(0)), said(11, u32(0) + u32(0)),
    said(12, u64(0), 1), said(13, u64(0x100)), said(14, u64(1), 1), said(15), said(16, u64(0x8)),
]
conversation("first-words-of-qemu", LOUD, said(1, shape=0), said(15, shape=0),
             said(16, u64(0x2B)), said(17), said(3), said(2, u64(1 << 32 | 1 << 30)),
             said(8, u32(0) + u32(128)), said(10, u32(0) + u32(0)),
             said(9, u32(0) + u32(0) + u64(0x1000) * 4), said(12, u64(0), 1), said(13, u64(0), 1),
             said(18, u32(0) + u32(1)))
conversation("every-request", LOUD | NEGOTIATED, *every)
others = [said(17), said(18, u32(0) + u32(1)), said(19),
             said(20), said(21, fds=1), said(22), said(23),
             said(24, u32(0) + u32(36) + u32(0) + b"\0" * 36, size=u8(36)),
             said(25, u32(0) + u32(4) + u32(1) + b"abcd", size=u8(4)), said(26), said(27), said(28),
             said(29), said(30),
             said(31, u64(0) + u64(0) + u16(2) + u16(128) + u32(0), size=u8(1)),
             said(32, u64(4096) + u64(0) + u16(2) + u16(128), 1, size=u8(0)), said(33)]
last = [said(34),
             said(35, u32(0) + u32(0)), said(36),
             said(37, u64(0) + u64(0) + u64(4096) + u64(0) + u64(0), 1),
             said(38, u64(0) + u64(0) + u64(4096) + u64(0) + u64(0)), said(39, u64(15)), said(40),
             said(41), said(42, u32(0) + u32(0), 1), said(43), said(44), said(45), said(46),
             said(9, u32(0) + u32(1) + u64(0x1000) * 4)]
conversation("the-other-requests", LOUD | NEGOTIATED, *others)
conversation("the-last-requests", LOUD | NEGOTIATED | VMM_ADDRESSES, *last)
conversation("a-device-without-extras", LOUD | NEGOTIATED | BARE, *every, *others, *last)
conversation("before-anything-was-agreed", LOUD, said(24, b"\0" * 12, size=u8(0)), said(31),
             said(35, u32(0) + u32(0)), said(37, b"\0" * 40, 1), said(40), said(42), said(44))
conversation("refused-by-the-device", NEGOTIATED,
             *[b"\x07" + message[1:] for message in every])
conversation("ring-that-isnt", NEGOTIATED, said(8, u32(3) + u32(1)), said(9, u32(99) + b"\0" * 36),
             said(12, u64(3), 1), said(18, u32(0) + u32(2)), said(11, u32(4) + u32(0)))
conversation("nine-regions", NEGOTIATED,
             said(5, u32(9) + u32(0) + b"\0" * 288, 9, size=u8(9)))
conversation("fewer-descriptors-than-regions", NEGOTIATED,
             said(5, u32(2) + u32(0) + b"\0" * 64, 1, size=u8(2)))
conversation("features-not-on-offer", LOUD, said(2, u64(0xFFFFFFFFFFFFFFFF)),
             said(16, u64(0xFFFFFFFFFFFFFFFF)))
conversation("config-of-4-kib", NEGOTIATED,
             said(24, u32(0) + u32(4084) + u32(0), size=u8(0)),
             said(24, u32(0) + u32(4085) + u32(0), size=u8(0)),
             said(25, u32(0xFFFFFFFF) + u32(0xFFFFFFFF) + u32(0), size=u8(0)))
conversation("header-cut", 0, u8(0, CUT, 1, 0, 5))
conversation("payload-cut", 0, u8(0, CUT, 2, 0) + u64(0) + u8(14))
conversation("message-in-two-pieces", 0, u8(0, CUT, 2, 0) + u64(0) + u8(14),
             u8(0, RAW, 6) + b"\0" * 6, said(1))
conversation("payload-too-long", 0, u8(0, WRONG_SIZE, 1, 11, 0))
conversation("wrong-version", 0, u8(0, WRONG_FLAGS, 1) + u32(2) + u8(0))
conversation("reply-where-a-request-belongs", 0, u8(0, WRONG_FLAGS, 1) + u32(5) + u8(0))
conversation("too-many-descriptors", 0, said(3, fds=9))
conversation("unknown-request", LOUD | NEGOTIATED, u8(0, RAW, 12) + u32(1000) + u32(9) + u32(0))
conversation("our-requests-answered", CHANNEL | NEGOTIATED, u8(0) + u64(0) + u8(1), u8(1), u64(0),
             u8(2) + u64(0) + u8(0) + u16(0) + u16(4096))
conversation("our-request-refused", CHANNEL | NEGOTIATED, u8(0) + u64(1) + u8(1))
conversation("our-request-answered-late", CHANNEL | NEGOTIATED, u8(0x40, 1), u8(0) + u64(0) + u8(1))
conversation("answer-to-another-request", CHANNEL | NEGOTIATED, u8(3) + u64(0) + u8(1),
             u8(0x80, 20) + u32(9) + u32(5) + u32(8) + u64(0), u8(0))
conversation("answer-cut", CHANNEL | NEGOTIATED, u8(0x20) + u64(0) + u8(5, 1))
conversation("answer-with-descriptors", CHANNEL | NEGOTIATED, u8(0x10) + u64(0) + u8(1))
conversation("vmm-gone", CHANNEL | NEGOTIATED, u8(0x45), u8(0x40))
conversation("without-the-features", CHANNEL, u64(0), u8(0x40, 0), u8(0x41), u8(0x42) + b"\0" * 5,
             u8(0x43) + b"\0" * 5, u8(0x44, 0))

# ---- fuse_request

READ_ONLY, ROOT_ONLY, WRITEBACK, FAIL, NO_INIT, NOTHING = 2, 4, 8, 0x10, 0x20, 0x40
ROOM, PIECES, ERROR, FAULTED, LONG = 1, 2, 4, 0x18, 0x20
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK = 8, 9, 10, 11, 12, 13
OPEN, READ, WRITE_OP, STATFS, RELEASE, FSYNC = 14, 15, 16, 17, 18, 20
SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT = 21, 22, 23, 24, 25, 26
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, GETLK, SETLK, SETLKW = 27, 28, 29, 30, 31, 32, 33
ACCESS, CREATE, INTERRUPT, DESTROY, IOCTL, POLL, BATCH_FORGET = 34, 35, 36, 38, 39, 40, 42
FALLOCATE, READDIRPLUS, RENAME2, LSEEK, COPY, SYNCFS = 43, 44, 45, 46, 47, 50
TMPFILE, STATX, COPY_64 = 51, 52, 53


def asked(opcode, arguments=b"", shape=0, room=b"", piece=b"", error=b"", content=16, wrong=b"\0"):
    """A request as fuse_request_fuzz.cc's step reads it."""
    body = u8(shape, opcode) + room + piece + error
    if opcode != IOCTL:
        body += u8(content)
    body += u8(len(arguments))
    if shape & LONG:
        body += u16(0)
    return body + arguments + wrong


def requests(name, options, *what):
    seed("fuse_request", name, u8(options), *what)


name0 = b"name\0"
words = [
    asked(LOOKUP, name0), asked(LOOKUP, b".\0"), asked(LOOKUP, b"..\0"), asked(FORGET, u64(1)),
    asked(GETATTR, u32(1) + u32(0) + u64(1)), asked(SETATTR, u32(8) + u32(0) + b"\0" * 80),
    asked(READLINK), asked(SYMLINK, name0 + b"target\0"), asked(MKNOD,
    u32(0o100644) + u32(0) * 3 + name0),
    asked(MKDIR, u32(0o755) + u32(0) + name0), asked(UNLINK, name0), asked(RMDIR, name0),
    asked(RENAME, u64(1) + name0 + b"other\0"), asked(LINK, u64(2) + name0), asked(OPEN,
    u32(2) + u32(0)),
    asked(READ, u64(1) + u64(0) + u32(100) + b"\0" * 20),
    asked(WRITE_OP, u64(1) + u64(0) + u32(4) + b"\0" * 20 + b"data"), asked(STATFS),
    asked(RELEASE, u64(1) + b"\0" * 16), asked(FSYNC, u64(1) + u32(1) + u32(0)),
    asked(FLUSH, u64(1) + b"\0" * 16),
]
more = [
    asked(SETXATTR, u32(4) + u32(0) + u32(0) * 2 + b"user.a\0" + b"data"),
    asked(GETXATTR, u32(100) + u32(0) + b"user.a\0"), asked(GETXATTR,
    u32(0) + u32(0) + b"user.a\0"),
    asked(LISTXATTR, u32(100) + u32(0)), asked(LISTXATTR, u32(0) + u32(0)),
    asked(REMOVEXATTR, b"user.a\0"), asked(OPENDIR, u32(0) * 2),
    asked(READDIR, u64(1) + u64(0) + u32(1000) + b"\0" * 20),
    asked(READDIRPLUS, u64(1) + u64(0) + u32(1000) + b"\0" * 20),
    asked(RELEASEDIR, u64(1) + b"\0" * 16), asked(FSYNCDIR, u64(1) + u64(0)),
    asked(GETLK, u64(1) * 2 + u64(0) + u64(9) + u32(0) * 4),
    asked(SETLK, u64(1) * 2 + u64(0) + u64(9) + u32(1) * 4),
    asked(SETLKW, u64(1) * 2 + u64(0) + u64(9) + u32(2) + u32(0) * 3),
    asked(ACCESS, u32(7) + u32(0)), asked(CREATE, u32(2) + u32(0o644) + u32(0) * 2 + name0),
    asked(INTERRUPT, u64(5)), asked(BATCH_FORGET, u32(2) + u32(0) + u64(1) * 4),
    asked(FALLOCATE, u64(1) + u64(0) + u64(10) + u32(0) * 2),
    asked(RENAME2, u64(1) + u32(1) + u32(0) + name0 + b"other\0"),
    asked(LSEEK, u64(1) + u64(0) + u32(3) + u32(0)), asked(COPY, u64(1) * 5 + u64(10) + u64(0)),
    asked(COPY_64, u64(1) * 5 + u64(10) + u64(0)), asked(SYNCFS, u64(0)),
    asked(TMPFILE, u32(2) + u32(0o644) + u32(0) * 2 + b"/\0"), asked(STATX,
    u32(1) + u32(0) + u64(1) + u64(0xFFF)),
    asked(IOCTL, u64(1) + u32(0) + u32(0x80086601) + u64(0) + u32(4) + u32(8) + b"abcd"),
    asked(POLL), asked(63),
]
requests("operations-on-names", 1, *words)
requests("operations-on-open-things", 1, *more)
requests("a-file-system-that-does-nothing", NOTHING, *words, *more)
requests("read-only", READ_ONLY, *words, *more)
requests("root-only", ROOT_ONLY, asked(LOOKUP, name0, wrong=u8(0x84) + u32(1000)),
         asked(LOOKUP, name0), asked(READ, u64(1) + b"\0" * 32, wrong=u8(0x84) + u32(1000)))
requests("before-init", NO_INIT, asked(LOOKUP, name0), asked(FORGET, u64(1)), asked(DESTROY))
requests("init-7.27", NO_INIT, asked(INIT, u32(7) + u32(27) + u32(4096) + u32(0xFFFFFFFF)), *more)
requests("init-7.26-is-too-old", NO_INIT, asked(INIT, u32(7) + u32(26) + u32(0) + u32(0)))
requests("init-8-asks-again", NO_INIT, asked(INIT, u32(8) + u32(0) + u32(0) + u32(0)), words[0])
requests("init-cut", NO_INIT, asked(INIT, u32(7) + u32(31) + u32(0)))
requests("init-twice", 0, asked(INIT, u32(7) + u32(45) + u32(0) * 14), words[0], asked(DESTROY),
         words[0])
requests("every-error", 0, *[u8(message[0] | ERROR, message[1]) + u16(error) + message[2:]
                             for message, error in zip(words, range(0, 600, 29))])
requests("directory-that-fails", FAIL, *more[7:9])
requests("single-byte-pieces", 0, *[u8(m[0] | PIECES, m[1]) + u8(0) + m[2:] for m in words])
requests("no-room-for-a-header", 0, *[u8(m[0] | ROOM, m[1]) + u8(2) + m[2:] for m in words[:6]])
requests("room-for-a-header-only", 0, *[u8(m[0] | ROOM, m[1]) + u8(3) + m[2:] for m in words])
requests("directory-in-little-room", 0,
         *[u8(m[0] | ROOM, m[1]) + u8(6) + m[2:] for m in more[7:9]])
requests("faulted", 0, *[u8(m[0] | FAULTED) + m[1:] for m in words])
requests("unique-0", 0, asked(LOOKUP, name0, wrong=u8(0x90)))
requests("len-past-the-end", 0, asked(LOOKUP, name0, wrong=u8(0x81) + u32(4096)))
requests("len-below-the-header", 0, asked(LOOKUP, name0, wrong=u8(0x81) + u32(39)))
requests("extension-past-end", 0,
         asked(MKDIR, u32(0o755) + u32(0) + name0, wrong=u8(0x82) + u16(0xFFFF)))
group = u32(16) + u32(32) + u32(1) + u32(1000)
label = b"security.selinux\0" + b"system_u"
context = u32(8 + 8 + len(label)) + u32(1) + u32(8) + u32(0) + label
context += b"\0" * (-len(context) % 8)
create = u32(2) + u32(0o644) + u32(0) * 2 + name0
requests("create-with-a-group", 0, asked(CREATE, create + group, wrong=u8(0xA0, 2)))
requests("create-with-a-security-context", 0,
         asked(CREATE, create + context, wrong=u8(0xA0, len(context) // 8)))
requests("create-with-both", 0,
         asked(CREATE, create + group + context, wrong=u8(0xA0, 2 + len(context) // 8)))
requests("security-context-cut", 0,
         *[asked(CREATE, create + context[:8 * n], wrong=u8(0xA0, n)) for n in range(6)])
requests("extension-of-size-0", 0, asked(CREATE, create + b"\0" * 16, wrong=u8(0xA0, 2)))
requests("write-without-its-data", 0, asked(WRITE_OP, u64(1) + u64(0) + u32(100) + b"\0" * 20))
requests("offsets-past-the-end-of-time", 0,
         asked(READ, u64(1) + u64(1 << 63) + u32(1) + b"\0" * 20),
         asked(FALLOCATE, u64(1) + u64(1 << 63) + u64(1 << 63) + u64(0)),
         asked(GETLK, u64(1) * 2 + u64(9) + u64(0) + u32(0) * 4))
requests("too-short-for-a-header", 0, u8(0xE0, 0, 39) + b"\0" * 39)
requests("xattr-name-of-256-bytes", 0, asked(REMOVEXATTR, b"n" * 250 + b"\0", shape=0))

# ---- fuse_session (16-byte instructions)

OPS = """INIT LOOKUP FORGET GETATTR SETATTR READLINK SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME LINK
OPEN READ WRITE STATFS RELEASE FSYNC SETXATTR GETXATTR LISTXATTR REMOVEXATTR FLUSH OPENDIR READDIR
RELEASEDIR FSYNCDIR GETLK SETLK SETLKW ACCESS CREATE INTERRUPT DESTROY IOCTL BATCH_FORGET FALLOCATE
READDIRPLUS RENAME2 LSEEK COPY_FILE_RANGE SYNCFS TMPFILE STATX COPY_FILE_RANGE_64 POLL SETUPMAPPING
HOST_LINK HOST_OUT HOST_IN HOST_RENAME HOST_REMOVE HOST_TRUNCATE HOST_REPLACE HOST_CHMOD""".split()
NAMES = """a b c d file dir way-out way-out-abs fifo device socket marker outside . .. '' a/b
../outside/marker / ... 255 256 4095 bytes""".split()


def do(what, node=0, handle=0, name="a", node2=0, name2="a", wrong=0, caller=0, a=0, b=0):
    return struct.pack("<8B2I", OPS.index(what), node, handle, NAMES.index(name), node2,
                       NAMES.index(name2), wrong, caller, a, b)


def settings(flags=0, cache=0, inodes=0, init=True):
    return struct.pack("<8B2I", flags, cache, inodes, 0 if init else 7, 0, 0, 0, 0, 0, 0)


def session(name, *what):
    seed("fuse_session", name, *what)


O_RDWR, O_TRUNC, O_DIRECT, O_APPEND = 2, 0o1000, 0o40000, 0o2000
session("read-a-file", settings(), do("LOOKUP", name="file"), do("OPEN", 1),
        do("READ", b=100), do("GETATTR", 1, a=1), do("FLUSH"), do("RELEASE"), do("FORGET", 1, a=1))
session("create-write-read", settings(), do("CREATE", a=O_RDWR, b=0o644, caller=1),
        do("WRITE", a=0, b=5000), do("READ", b=9000), do("FSYNC"), do("FALLOCATE", a=100, b=6000),
        do("LSEEK", name="d", a=0), do("COPY_FILE_RANGE", a=0, b=6000), do("RELEASE"),
        do("UNLINK"), do("GETATTR", 1))
session("write-single-byte-pieces", settings(), do("CREATE", a=O_RDWR, b=0o644),
        do("WRITE", b=300, wrong=8), do("READ", b=300, wrong=8))
session("append-and-direct", settings(64), do("CREATE", a=O_RDWR | O_APPEND | O_DIRECT, b=0o644),
        do("WRITE", b=100, name2="fifo"), do("WRITE", b=4096), do("READ", b=4096))
session("directories", settings(), do("OPENDIR"), do("READDIR", b=4000),
        do("READDIRPLUS", b=18000, wrong=10), do("LOOKUP", name="dir"), do("OPENDIR", 1),
        do("READDIRPLUS", handle=1, b=4000), do("READDIR", handle=1, a=0x7FFFFFFF, b=4000),
        do("FSYNCDIR"), do("RELEASEDIR"), do("RELEASEDIR", handle=1))
session("names-come-and-go", settings(), do("MKDIR", name="a", a=0o755),
        do("MKNOD", 1, name="b", b=0, a=0o644), do("SYMLINK", name="c", name2="outside"),
        do("READLINK", 3), do("LINK", name="d", node2=2), do("RENAME", 1, name="b", name2="b"),
        do("RENAME2", name="c", name2="d", a=2), do("RMDIR", name="a"), do("UNLINK", name="c"))
session("links-that-lead-out", settings(), do("LOOKUP", name="way-out"), do("OPEN", 1),
        do("READLINK", 1), do("SETATTR", 1, b=1, a=0o777 << 8), do("GETXATTR", 1, a=100),
        do("SETXATTR", 1, name="c", a=4), do("LOOKUP", name="way-out-abs"), do("OPEN", 2, a=O_RDWR),
        do("TMPFILE", 2, a=O_RDWR), do("LOOKUP", 1, name="marker"), do("ACCESS", 1, a=4))
session("names-that-climb", settings(),
        *[do(op, name=name) for op in ("LOOKUP", "UNLINK", "MKDIR")
          for name in (".", "..", "''", "a/b", "../outside/marker", "/", "255", "256", "4095")])
session("parent-of-the-root", settings(), do("LOOKUP", name=".."), do("LOOKUP", name="dir"),
        do("LOOKUP", 2, name=".."), do("GETATTR", 1))
session("fifo-and-device", settings(), do("LOOKUP", name="fifo"), do("OPEN", 1), do("OPEN", 1,
    a=O_RDWR),
        do("MKNOD", name="device", b=3, a=0o666 | 0x01030000), do("OPEN", 2), do("OPENDIR", 2),
        do("MKNOD", name="socket", b=2, a=0o666), do("OPEN", 3, a=O_RDWR | O_TRUNC))
session("directory-becomes-a-link", settings(), do("LOOKUP", name="dir"),
        do("HOST_LINK", name="dir"), do("LOOKUP", 1, name="marker"), do("OPENDIR", 1),
        do("READDIRPLUS", b=4000), do("CREATE", 1, name="a", a=O_RDWR, b=0o644))
session("directory-leaves-the-share", settings(), do("LOOKUP", name="dir"),
        do("HOST_OUT", name="dir"), do("LOOKUP", 1, name=".."), do("LOOKUP", 1, name="a"),
        do("LOOKUP", 1, name="marker"), do("HOST_IN", name="dir"), do("LOOKUP", 1, name=".."))
session("directory-leaves-and-is-cold", settings(inodes=0), do("LOOKUP", name="dir"),
        *[do("MKDIR", name=n, a=0o755) for n in ("a", "b", "c", "d")],
        do("HOST_OUT", name="dir"), do("HOST_LINK", name="dir"), do("GETATTR", 1),
        do("LOOKUP", 1, name=".."))
session("file-replaced-meanwhile", settings(), do("LOOKUP", name="file"),
        do("HOST_REPLACE", name="file", a=1), do("OPEN", 1), do("GETATTR", 1), do("HOST_TRUNCATE"),
        do("HOST_LINK", name="file", a=1), do("OPEN", 1, a=O_RDWR | O_TRUNC), do("LOOKUP",
        name="file"))
session("nodes-never-given", settings(), *[do(op, node) for op in ("GETATTR", "OPEN", "LOOKUP",
    "FORGET")
                                            for node in (0xFB, 0xFC, 0xFD, 0xFE, 0xFF)])
session("handles-never-given", settings(), do("LOOKUP", name="file"), do("OPEN", 1),
        *[do(op, 1, 0xF0 + n, b=100) for op in ("READ", "WRITE", "RELEASE", "FLUSH", "READDIR",
        "LSEEK")
          for n in (0, 1)], do("READDIR"), do("RELEASEDIR"), do("RELEASE"), do("RELEASE"),
          do("READ", b=9))
session("forgotten-too-often", settings(), do("LOOKUP", name="file"), do("OPEN", 1),
        do("FORGET", 1, a=0x80000017), do("READ", b=10), do("FORGET", 1, a=1), do("GETATTR", 1),
        do("FORGET", 0, a=0x80000017), do("BATCH_FORGET", a=3, b=7), do("LOOKUP", name="file"))
session("locks", settings(), do("CREATE", a=O_RDWR, b=0o644), do("SETLK", name="b", b=100,
    caller=1),
        do("SETLK", name="b", b=100, caller=2), do("SETLKW", name="b", b=100, caller=2),
        do("GETLK", name="a", b=50, caller=3), do("SETLK", name="c", a=20, b=30, caller=1),
        do("SETLK", name="b", name2="b", b=100), do("FLUSH", caller=1), do("INTERRUPT", a=3),
        do("RELEASE", a=3))
session("attributes", settings(), do("CREATE", a=O_RDWR, b=0o6755, caller=1),
        *[do("SETATTR", 1, b=1 << bit, a=0o4755 << 8 | 100, caller=2) for bit in range(11)],
        do("STATX", 1, a=1, b=0xFFF), do("STATFS"), do("ACCESS", 1, a=7))
session("extended-attributes", settings(), do("CREATE", a=O_RDWR, b=0o644),
        *[do(op, 1, name=name, a=a, b=b) for op, a, b in (("SETXATTR", 20, 0), ("GETXATTR", 100, 0),
                                                      ("GETXATTR", 0, 0), ("REMOVEXATTR", 0, 0))
          for name in ("a", "b", "c", "d", "file")], do("LISTXATTR", 1, a=100), do("LISTXATTR", 1,
          a=0))
session("extended-attributes-mapped", settings(32), do("CREATE", a=O_RDWR, b=0o644),
        do("SETXATTR", 1, name="d", a=20), do("GETXATTR", 1, name="d", a=100),
        do("WRITE", b=10), do("GETXATTR", 1, name="d", a=100), do("LISTXATTR", 1, a=1000))
session("security-context-and-group", settings(), do("MKDIR", a=0o755, wrong=11, caller=1),
        do("MKDIR", name="b", a=0o755, wrong=12, caller=1), do("CREATE", name="c", wrong=11,
        a=O_RDWR))
session("ioctls", settings(), do("LOOKUP", name="file"), do("OPEN", 1, a=O_RDWR),
        *[do("IOCTL", name=name, a=40, b=100) for name in ("a", "b", "c", "d", "file", "dir")])
session("second-init", settings(), do("LOOKUP", name="file"), do("OPEN", 1), do("INIT"),
        do("READ", b=100), do("GETATTR", 1), do("DESTROY"), do("LOOKUP", name="file"))
session("no-init", settings(init=False), do("LOOKUP", name="file"), do("GETATTR"), do("INIT"),
        do("LOOKUP", name="file"))
session("read-only", settings(1), do("LOOKUP", name="file"), do("OPEN", 1, a=O_RDWR), do("OPEN", 1),
        do("MKDIR"), do("UNLINK", name="file"), do("SETATTR", 1, b=8), do("IOCTL", name="b", a=40))
session("many-inodes-few-descriptors", settings(inodes=4),
        *[do("MKDIR", node, name=name, a=0o755) for node in range(6) for name in ("a", "b", "c",
        "d")],
        *[do("GETATTR", node) for node in range(20)], do("SYNCFS"))
session("writeback", settings(2, cache=2), do("CREATE", a=1, b=0o644), do("WRITE", b=100,
    name2="b"),
        do("READ", b=100), do("SETATTR", 1, b=0x8, a=5))
session("nameless-file", settings(), do("TMPFILE", a=O_RDWR, b=0o644, caller=1), do("WRITE", b=100),
        do("LINK", name="a", node2=1), do("GETATTR", 1), do("POLL"), do("SETUPMAPPING"))
session("every-request-cut", settings(),
        *[do(op, wrong=1, a=9) for op in OPS[:47]])
session("no-room-for-the-answer", settings(), *[do(op, wrong=5, b=16, a=0o644) for op in OPS[:46]])

# ---- state_arena


def arena(name, options, lies, *steps):
    body = u8(options, len(lies))
    for at, lie in lies:
        body += u16(at) + u8(len(lie)) + lie
    seed("state_arena", name, body, *steps)


# The sections follow the header page: session, inodes (80 bytes each), blobs.
INODES, BLOBS = 0x2000, 0x3000
arena("as-it-was-made", 0, [], *[u8(0)] * 4, u8(2, 1), u8(2, 2), u8(0), u8(3, 3))
arena("header-lies", 1, [(8, u32(2))])
arena("not-sealed", 4, [])
arena("too-short", 2, [], u8(2))
arena("free-list-leads-out", 0, [(INODES, u64(0xFFFFFFF0))], u8(0), u8(0))
arena("free-list-leads-to-a-live-slot", 0,
      [(INODES, u64(1)), (INODES + 8, u32(5)), (INODES + 80, u64(1 << 32 | 2))], u8(0), u8(0))
arena("free-list-loops", 0, [(INODES, u64(2)), (INODES + 8, u32(5)), (INODES + 160 + 76, u32(2))],
      u8(0), u8(0), u8(0))
arena("more-used-than-there-are", 0, [(INODES + 8, u32(0xFFFFFFFF))], u8(0))
arena("used-says-less", 0, [(INODES + 8, u32(1)), (INODES + 80, u64(7 << 32 | 2))], u8(0), u8(0),
      u8(4, 1) + u32(7))
arena("blobs", 8, [], u8(0, 5) + b"hello", u8(0, 200) + b"x" * 200, u8(1), u8(1), u8(0, 3) + b"abc")
arena("blob-reference-leads-out", 8, [], u8(2, 1) + u32(0xFFFFFFFF) + u8(0))
arena("blob-at-the-end-says-255", 8, [(BLOBS + 63 * 16, u8(255))], u8(2, 0, 63, 0))
arena("blob-list-leads-out", 8, [(BLOBS + 2 * 16 + 0, u32(0))], u8(0, 5) + b"hello",
      u8(2, 0, 1, 0), u8(0, 5) + b"again", u8(0, 5) + b"third")
arena("blobs-used-lies", 8, [(BLOBS, u32(0xFFFFFFF8))], u8(0, 5) + b"hello")

# ---- saved_state: settings, how, then frames (fuzz/saved_state_fuzz.cc)


def saved(name, settings, how, *steps):
    # Of a head without rings, a session and a root that are right: the newest generations.
    seed("saved_state", name, u8(settings, how), *steps)


NEWEST = u8(1, 1)
FILE, DIRECTORY = 0, 1  # kTypes, and names by their place in kNames


def node(slot, parent, kind, name, place=0, lookups=1, opened=0):
    # Parent: 0 the root, else 6 and more of those before.
    return u8(0, slot, 0, lookups, parent, 0, place, kind, opened, name, 1, 1, 1)


def handle(slot, which, flags=2, kind=0, flock=0):
    return u8(3, slot, 0) + u8(which) + u8(0, flags, kind, flock)


def lock(which, owner, *ranges):
    return (u8(5, len(ranges)) + b"".join(u8(start, end, kind) for start, end, kind in ranges) +
            u8(which) + u8(owner, 1))


saved("nothing", 2, 0, NEWEST)
saved("a-file", 2, 0, NEWEST, node(2, 0, FILE, 0))
saved("a-file-and-a-handle", 2, 0, NEWEST, node(2, 0, FILE, 0, opened=1), handle(1, 6))
saved("a-directory-and-what-is-in-it", 2, 0, NEWEST, node(2, 0, DIRECTORY, 1), node(3, 6, FILE, 2),
      handle(1, 6, kind=1), handle(2, 7, flock=2))
saved("locks", 2, 0, NEWEST, node(2, 0, FILE, 0, opened=1), handle(1, 6),
      lock(6, 1, (0, 3, 1), (5, 7, 0)), lock(6, 2, (0, 3, 1)))
saved("links-that-lead-out", 2, 0, NEWEST, node(2, 0, 2, 3), node(3, 0, DIRECTORY, 3, place=1),
      node(4, 0, FILE, 12, place=1), node(5, 0, FILE, 8, place=1))
saved("by-a-path", 2, 0, NEWEST, node(2, 0, FILE, 6, place=1), handle(1, 6))
saved("by-a-handle", 3, 0, NEWEST, u8(0, 2, 0, 1, 0, 0, 2, FILE, 0, 0, 1, 0, 0, 1))
saved("one-id-twice", 2, 0, NEWEST, node(2, 0, FILE, 0), node(2, 0, DIRECTORY, 1))
saved("one-file-twice", 2, 0, NEWEST, node(2, 0, FILE, 0), node(3, 0, FILE, 0))
saved("forgotten-directory", 2, 0, NEWEST, node(2, 0, DIRECTORY, 1, lookups=0), node(3, 6, FILE, 2))
saved("without-a-place", 2, 0, NEWEST, node(2, 0, FILE, 0, place=3, opened=1), handle(1, 6))
saved("does-not-go-on", 0, 0, NEWEST, node(2, 0, FILE, 0), node(3, 0, FILE, 2))
saved("without-an-end", 2, 1, NEWEST, node(2, 0, FILE, 0))
saved("a-ring", 2, 2, u8(1, 0, 3, 5, 2, 0, 3, 0x80, 0, 1, 4, 0x80, 0, 2), NEWEST, node(2, 0, FILE, 0))
saved("a-packed-ring", 2, 2, u8(1, 1, 3, 5, 1, 3, 2, 0x80, 0, 1, 2, 3, 3, 3, 3, 4, 4, 3, 2), NEWEST)
saved("a-kind-that-is-none", 2, 0, NEWEST, u8(6, 99, 4) + b"abcd")
saved("cut", 2, 0, NEWEST, node(2, 0, FILE, 0), u8(7, 60))

# ---- xattr_map


def rules(name, text, *names):
    seed("xattr_map", name, "\n".join((text, *names)))


rules("map-everything", ":map::user.virtiofs.:", "user.a", "security.capability", "trusted.b")
rules("map-trusted", ":map:trusted.:user.virtiofs.:", "trusted.a", "user.virtiofs.a")
rules("rules-with-slashes",
    "/prefix/all/trusted./user.virtiofs./\n/bad/server//trusted./\n/ok/all///")
rules("prefix-bad-ok", ":prefix:client:trusted.:user.virtiofs.::bad:server::trusted.::ok:all:::",
      "trusted.a", "user.virtiofs.trusted.a", "user.b")
rules("unsupported", ":unsupported:all:system.::ok:all:::", "system.posix_acl_access")
rules("no-catch-all", ":prefix:all:trusted.:user.:")
rules("map-not-last", ":map::user.::ok:all:::")
rules("unknown-type", ":nonsense:all:::")
rules("cut", ":prefix:all:trus")
rules("white-space", "  :ok:all:::  ", "user.a")
rules("empty", "")

# ---- options


def line(name, *argv):
    seed("options", name, "\n".join(argv))


share = ["--socket-path=/run/s", "--shared-dir=/srv"]
line("the-usual", *share)
line("as-libvirt-does", "--fd=3", "-o",
    "source=/srv,cache=always,xattr,flock,no_posix_lock,sandbox=chroot",
     "--thread-pool-size=4")
line("item-list-with-escapes", *share, "-o", r"source=/a\054b,,c\,d,timeout=1.5")
line("every-switch", *share, "-o", "readonly,writeback,no_readdirplus,allow_direct_io,allow_mmap,"
     "preserve_noatime,no_announce_submounts,norace,allow_root,killpriv_v2,posix_acl,"
     "security_label")
line("every-value", *share, "--tag=t", "--num-request-queues=64", "--poll-us=10", "--timeout=0.5",
     "--negative-timeout=2", "--inode-descriptors=100", "--rlimit-nofile=1000", "--seccomp=log",
     "--modcaps=+sys_admin:-chown", "--inode-file-handles=prefer", "--socket-group=kvm",
     "--cache=never")
line("id-maps", *share, "--uid-map=:0:1000:1:", "--gid-map", "/0/1000/1/",
    "--translate-uid=map:0:1:1")
line("id-map-past-the-last-id", *share, "--uid-map=:4294967295:0:2:")
line("numbers-out-of-range", *share, "--num-request-queues=65", "--fd=99999999999")
line("seconds-out-of-range", *share, "--timeout=1e400")
line("unknown", *share, "--frobnicate", "-o", "frob")
line("no-value", "--socket-path=", "--shared-dir")
line("help", "--help")
line("version", "-V")
line("capabilities", "--print-capabilities")
line("xattr-map", *share, "-o", "xattrmap=:map::user.:")
line("xattr-map-against-no-xattr", *share, "-o", "no_xattr,xattrmap=:map::user.:")
line("xattr-map-wrong", *share, "--xattrmap=:x:")
line("words-alone", "word", "--", "-", "-o")
line("empty")
