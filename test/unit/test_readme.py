"""test_readme.py - README.md shows the CUDA program that the build compiles (where there is an nvcc), and in 20 lines."""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
with open(os.path.join(ROOT, "client/examples/gpu_compute_something.cu")) as f:
    program = f.read().split("\n", 1)[1]  # behind the line that says what it is
with open(os.path.join(ROOT, "README.md")) as f:
    readme = f.read()
lines = [line.replace("\t", "    ") for line in program.splitlines()]
shown = "\n".join("    " + line if line else "" for line in lines)
if shown not in readme:
    sys.exit("README.md does not show client/examples/gpu_compute_something.cu as it is")
if sum(bool(line) for line in lines) > 20 or max(map(len, lines)) > 120:
    sys.exit("client/examples/gpu_compute_something.cu is no 20 lines of 120 columns any more")
