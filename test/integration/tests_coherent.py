"""tests_coherent.py - -o coherent: the kernel trusts what it has for ten minutes, so whatever is seen earlier was told by an event."""
import mmap, os
from device import states
from harness import CHUNK, HMMFS, command, data_of, mounted, wait_until
from user import mounted_by_an_ordinary_user

CHANGES = """
import os, sys
point, source = sys.argv[1:]
at, back = (lambda n: os.path.join(point, n)), (lambda n: os.path.join(source, n))

def until(holds, what):
    for _ in range(3000):
        if holds():
            return
        os.sched_yield(), __import__("time").sleep(0.01)
    raise SystemExit("never seen: " + what)

def text(n):
    try:
        with open(at(n)) as f:
            return f.read()
    except FileNotFoundError:
        return None

os.makedirs(at("d/e"))
for n in ("f", "gone", "moved", "d/e/f"):
    with open(at(n), "w") as f:
        f.write("old")
for turn in range(2):
    [os.stat(at(n)) for n in ("f", "gone", "moved", "d", "d/e", "d/e/f")]
    for n in ("new", "newdir", "d/e/new", "here"):
        assert not os.path.lexists(at(n))
held = open(at("f"))
assert held.read() == "old" and text("d/e/f") == "old"
with open(back("f"), "w") as f:
    f.write("newer")
until(lambda: os.fstat(held.fileno()).st_size == 5 and text("f") == "newer", "a file's bytes")
held.seek(0)
assert held.read() == "newer"
os.chmod(back("d/e/f"), 0o600)
until(lambda: os.stat(at("d/e/f")).st_mode & 0o777 == 0o600, "a mode")
os.utime(back("d/e"), (1, 2))
until(lambda: os.stat(at("d/e")).st_mtime == 2, "a directory's time")
os.utime(source, (1, 3))
until(lambda: os.stat(point).st_mtime == 3, "the root's time")
os.unlink(back("gone"))
until(lambda: not os.path.lexists(at("gone")), "a name that is gone")
os.rename(back("moved"), back("here"))
until(lambda: not os.path.lexists(at("moved")) and text("here") == "old", "a name that was changed")
os.mkdir(back("newdir"))
with open(back("d/e/new"), "w") as f:
    f.write("made")
until(lambda: os.path.isdir(at("newdir")) and text("d/e/new") == "made", "names that are new")
with open(back("newdir/below"), "w") as f:
    f.write("below")
until(lambda: os.path.exists(at("newdir/below")) and text("newdir/below") == "below", "a name in a directory that is new")
os.symlink("f", back("link")), os.replace(back("link"), back("here"))
until(lambda: os.path.islink(at("here")), "a file replaced by a link")
os.link(back("f"), back("d/second"))
os.truncate(back("d/second"), 2)
until(lambda: os.stat(at("f")).st_size == 2, "a change by another name")
for turn in range(2):  # listings that the kernel keeps
    before = set(os.listdir(at("d")))
open(back("d/unseen"), "x").close()
until(lambda: set(os.listdir(at("d"))) == before | {"unseen"}, "a name in a listing")
os.unlink(back("d/unseen"))
until(lambda: set(os.listdir(at("d"))) == before, "a name that is gone from a listing")
open(at("d/own"), "x").close()
assert set(os.listdir(at("d"))) == before | {"own"}
os.unlink(at("d/own"))
assert set(os.listdir(at("d"))) == before
os.rename(back("d"), back("d2"))
until(lambda: not os.path.lexists(at("d")) and os.path.exists(at("d2/e/f")), "a directory that was moved")
"""


def others_changes_are_seen_at_once():
    with mounted(coherent=True) as m:
        command("python3", "-c", CHANGES, m.point, m.source)
        m.umount()


def others_changes_are_seen_at_once_by_an_ordinary_users_daemon():
    def work(hmmfs, source, point, mine):
        r = mine("/usr/bin/python3", "-c", CHANGES, point, source)
        assert r.returncode == 0, r.stderr.decode()
        assert mine(hmmfs, "umount", point).returncode == 0
    return mounted_by_an_ordinary_user(work, options=",coherent")


def our_own_changes_are_no_events():
    """What is made through the mount stays trusted: the inode keeps its pages and chunks."""
    with mounted(coherent=True, writeback_interval="0") as m:
        fd = os.open(m.path("f"), os.O_RDWR | os.O_CREAT)
        os.write(fd, data_of(2 * CHUNK))
        command(HMMFS, "prefetch", m.path("f"))
        for i in range(20):
            os.pwrite(fd, b"x", i), os.fsync(fd), os.fchmod(fd, 0o600 + i % 2), os.rename(m.path("f"), m.path("g")), os.rename(m.path("g"), m.path("f"))
        assert states(fd) == {0: "CLEAN", 1: "CLEAN"}, states(fd)
        os.close(fd)
        m.umount()


def others_changes_drop_what_is_on_the_device():
    with mounted(coherent=True) as m:
        fd = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR)
        command(HMMFS, "prefetch", m.path("f"))
        mapped = mmap.mmap(fd, 2 * CHUNK)
        assert mapped[:] == data_of(2 * CHUNK)
        with open(os.path.join(m.source, "f"), "r+b") as f:
            f.write(b"others")
        wait_until(lambda: mapped[:6] == b"others" and os.pread(fd, 6, 0) == b"others", "the bytes of others")
        assert os.pread(fd, 2 * CHUNK, 6) == data_of(2 * CHUNK)[6:]
        mapped.close(), os.close(fd)
        m.umount()
