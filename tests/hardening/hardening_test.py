# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Looks at the built daemon for what hardening flags leave behind in it.

    hardening_test.py BINARY

Reads the ELF file with binutils; one line per property, status 1 if one is missing.
"""

import platform
import re
import subprocess
import sys


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def properties(binary):
    """(what, is it so, why it matters) for everything that is looked for."""
    header = output("readelf", "-hW", binary)
    segments = output("readelf", "-lW", binary)
    dynamic = output("readelf", "-dW", binary)
    symbols = output("readelf", "--dyn-syms", "-W", binary)
    code = output("objdump", "-d", "--no-show-raw-insn", binary)
    x86 = platform.machine() == "x86_64"

    yield "PIE", "DYN" in header and re.search(r"FLAGS_1.*\bPIE\b", dynamic), \
        "addresses are random"
    yield "RELRO", "GNU_RELRO" in segments, "relocated pointers become read-only"
    yield "bind now", re.search(r"\bBIND_NOW\b|FLAGS_1.*\bNOW\b", dynamic), \
        "no writable table of functions"
    stack = re.search(r"GNU_STACK.*", segments)
    yield "no executable stack", stack and not re.search(r"\bRWE\b", stack.group()), ""
    yield "no writable code", not re.search(r"LOAD.*\bRWE\b", segments), ""
    yield "no text relocations", "TEXTREL" not in dynamic, ""
    yield "no library path of its own", not re.search(r"\bR(UN)?PATH\b", dynamic), \
        "libraries come from the system only"
    yield "stack protector", "__stack_chk_fail" in symbols, ""
    yield "fortify", re.search(r"__(memcpy|v?snprintf|fprintf|p?read)\w*_chk", symbols), \
        "C library calls know the size of their buffers"
    if x86:
        # A frame of a page or more touches each of its pages, with an `or` of zero.
        yield "stack clash protection", re.search(r"\bor[qlb]?\s+\$0x0,\(%rsp\)", code), \
            "a large frame can't jump the guard page"
        # Every function begins with it; the few without are the C library's start files.
        yield "CET landing pads", len(re.findall(r"\bendbr64\b", code)) > 100, ""
        notes = output("readelf", "-nW", binary)
        yield "CET shadow stack", re.search(r"x86 feature:.*SHSTK", notes), \
            "the loader may turn it on"
    else:
        yield "branch protection", re.search(r"\b(bti|paciasp|hint\s+#25)\b", code), ""


def main():
    missing = 0
    for what, there, why in properties(sys.argv[1]):
        print(f"{'ok     ' if there else 'MISSING'} {what}" + (f": {why}" if why else ""))
        missing += not there
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
