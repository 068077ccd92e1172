#!/usr/bin/env python3
"""fsstress.py - random calls on a tree, by several processes, each call made in a twin directory, too: what came of the two must be equal.

    fsstress.py [--seed N] [--seconds N | --steps N] [--processes N] [--no-set-ids] DIRECTORY TWIN

Both directories are empty at first. Each process owns the names that begin with its letter, wherever they are, and all work in the same
top directories; so what a call on its own names gives is settled by its seed, whatever the others do, and is compared step by step:
results, errno's, bytes, attributes. As root, half of the steps are another user's. One step in eight is on names that belong to
everybody, in DIRECTORY alone: what comes of it is luck, but must be one of the errors that such a race can give. At the end the two
trees are compared, without everybody's. Exit status: 0, 1 something differed, 2 misuse."""
import argparse, os, sys, time, traceback
from random import Random
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from steps import CHANCES, Twins, outcome
from tree import SHARED, differences, entries

HISTORY = 30


def work(a, number):
    """One process: its exit status."""
    random, history = Random(f"{a.seed} {number}"), []
    twins = Twins(random, number, a.directory, a.twin, 0o1777 if a.no_set_ids else 0o7777)
    steps, end = 0, time.monotonic() + a.seconds
    try:
        while steps < a.steps if a.steps else time.monotonic() < end:
            steps += 1
            call = random.choices(CHANCES, [weight for weight, _ in CHANCES])[0][1]
            history.append(twins.step(call))
            del history[:-HISTORY]
            if twins.wrong:
                break
    except BaseException:
        twins.wrong = traceback.format_exc()
    if not twins.wrong:
        print(f"fsstress: process {number}: {steps} steps, {twins.n_succeeded} of them without an error", flush=True)
        return 0
    print(*("  " + line for line in history), f"WRONG: seed {a.seed}, process {number}, step {steps}: {twins.wrong}", sep="\n", file=sys.stderr, flush=True)
    return 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1), parser.add_argument("--seconds", type=float, default=10), parser.add_argument("--steps", type=int)
    parser.add_argument("--processes", type=int, default=4), parser.add_argument("--no-set-ids", action="store_true"), parser.add_argument("directory"), parser.add_argument("twin")
    a = parser.parse_args()
    for top in (a.directory, a.twin):
        for name in SHARED:
            os.mkdir(os.path.join(top, name)), os.chmod(os.path.join(top, name), 0o1777)
    children = {}
    for number in range(a.processes):
        child = os.fork()
        if child == 0:
            os._exit(work(a, number))
        children[child] = number
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    wrong = differences(entries(a.directory, everybodys=False), entries(a.twin, everybodys=False))
    print(*wrong[:20], f"fsstress: seed {a.seed}: {len(wrong)} differences between the trees, of {len(entries(a.twin))} names", sep="\n", flush=True)
    return 1 if wrong or any(statuses) else 0


if __name__ == "__main__":
    sys.exit(main())
