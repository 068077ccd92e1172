"""tests_bench.py - that the benchmark still runs; what it measures is its own affair."""
import json, os, shutil, sys
from harness import BUILD, command

DEVICES = ["host"]
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")


def the_benchmark_prints_a_row_for_each_target():
    if not BUILD or not shutil.which("fio"):
        return "needs fio, and a build"
    said = command(sys.executable, os.path.join(ROOT, "tools/bench"), "--build", BUILD, "--size", str(16 << 20), "--runs", "1", "--dir", "/var/tmp")
    rows = json.loads(said.splitlines()[-1])["rows"]
    assert len(rows) == 7 and all(row["hmmfs"] > 0 and row["floor"] > 0 for row in rows), said
