"""tests_dbench.py - dbench's load of a file server, by several clients. It stops at the first call whose result is not the recorded one."""
import os, re
from full import missing, open_to_all, run, say

LOAD = "/usr/share/dbench/client.txt"


def dbench_with_eight_clients():
    why_not = missing("dbench") or (None if os.path.exists(LOAD) else f"needs {LOAD}")
    if why_not:
        return why_not
    for options in (dict(capacity="1M"), dict(capacity="1M", migrate_min="1M"), dict(coherent=True)):
        with open_to_all(**options) as m:
            said = run("dbench", "-c", LOAD, "-D", m.point, "-t", "10", "--sync-dir", "8")
            assert "Throughput" in said and not re.search(r"fail|error|ERROR", said), said
            calls = sum(int(n) for n in re.findall(r"^ \w+ +(\d+) +[\d.]+ +[\d.]+$", said, re.M))
            say(f"dbench {options}: {calls} calls, none with another result than recorded")
            m.umount()
    return None
