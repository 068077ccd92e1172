#!/usr/bin/env python3
"""embed.py OUT NAME=FILE... - a C header with the files' texts as strings; NAME= alone: NULL."""
import sys
with open(sys.argv[1], "w") as out:
    for word in sys.argv[2:]:
        name, path = word.split("=", 1)
        if not path:
            out.write(f"static const char *const {name} = NULL;\n")
            continue
        with open(path, "rb") as f:
            data = f.read() + b"\0"
        out.write(f"static const char {name}_bytes[] = {{{','.join(map(str, data))}}};\n"
                  f"static const char *const {name} = {name}_bytes;\n")
