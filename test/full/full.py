"""full.py - what the public suites share."""
import contextlib, os, re, shutil, subprocess, sys, threading
from harness import BUILD, HMMFS, daemon_environment, mounted


def missing(*programs):
    """Why a suite can't run, or None."""
    absent = [p for p in programs if not shutil.which(p)]
    return f"needs {', '.join(absent)}; tools/setup --full installs them" if absent else None


def say(*words):
    """Counts and figures, for who reads the log and docs/testing.md."""
    print("    ", *words, flush=True)


@contextlib.contextmanager
def moved_about(m, *names):
    """Meanwhile these files of the mount are prefetched, leased by a kernel that reads them, and evicted, again and again."""
    is_over, rounds = threading.Event(), [0]

    def move():
        while not is_over.is_set():
            for args in (("prefetch",), ("run", "sum"), ("evict",), ("prefetch",)):
                for name in names:
                    subprocess.run([HMMFS, *args, m.path(name)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | daemon_environment)
            rounds[0] += 1
    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield rounds
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def open_to_all(**options):
    """A mount that other users and devices are to work on; and a twin directory of its backing."""
    with mounted(**dict(allow_other=True, dev=True, suid=True) | options) as m:
        os.chmod(os.path.dirname(m.source), 0o755)
        m.twin = os.path.join(os.path.dirname(m.source), "twin")
        os.mkdir(m.twin)
        yield m


def run(*args, ok=(0,), seconds=600, **more):
    """What it said on both streams. A status not in ok, or the time limit of what hangs, fails the suite."""
    r = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=seconds, text=True,
                       errors="replace", **more)
    assert ok is None or r.returncode in ok, f"{args}: status {r.returncode}: {r.stdout[-8000:]}"
    return r.stdout
