#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Holds the sources against the plan of the house: includes run one way, and
reinterpret_cast stays in the files at the boundary. ARCHITECTURE.md says why.

Usage: check_layers.py [ROOT]. Prints one line for each break; exit status 1 if there is any.
"""

import re
import sys
from pathlib import Path

# Who may include whom. A room may always include itself.
ROOMS = {
    "base": "",
    "sys": "base",
    "memory": "base sys",
    "state": "base sys",
    "virtio": "base sys memory state",
    "vhost_user": "base sys memory",
    "fuse": "base sys memory state",
    "passthrough": "base sys memory state fuse",
    "sandbox": "base sys",
    "daemon": "base sys memory state virtio vhost_user fuse sandbox",
    "cli": "base sys fuse passthrough sandbox daemon",
    "testing": "base sys",
}
GENERATED = {"version.h"}
MAY_CAST = {"src/base/reader.cc", "src/memory/guest_memory.cc", "src/sys/sockets.cc"}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
CAST = re.compile(r"\breinterpret_cast\b")


def sources(root):
    for folder in ("src", "testing"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".h", ".cc", ".c"):
                yield path


def check(root):
    for path in sources(root):
        place = path.relative_to(root).as_posix()
        parts = path.relative_to(root).parts
        room = "testing" if parts[0] == "testing" else parts[1] if len(parts) > 2 else None
        allowed = {room, *ROOMS[room].split()} if room in ROOMS else set(ROOMS) - {"testing"}
        if room is not None and room not in ROOMS:
            yield f"{place}: {room} is no room of ours"
        for number, line in enumerate(path.read_text().splitlines(), 1):
            include = INCLUDE.match(line)
            if include and include[1] not in GENERATED:
                target, _, file = include[1].partition("/")
                if not file:
                    yield f'{place}:{number}: name the room: #include "room/{target}"'
                elif target not in allowed:
                    yield f"{place}:{number}: {room or 'main'} may not include {target}"
                elif not ((root / "src" / include[1]).exists() or (root / include[1]).exists()):
                    yield f"{place}:{number}: there is no {include[1]}"
            code = line.split("//")[0]
            if CAST.search(code) and place not in MAY_CAST and room != "testing":
                yield f"{place}:{number}: reinterpret_cast is for {', '.join(sorted(MAY_CAST))}"


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
    breaks = list(check(root))
    print("\n".join(breaks) or "every include follows the arrows")
    return 1 if breaks else 0


if __name__ == "__main__":
    sys.exit(main())
