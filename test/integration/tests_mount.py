"""tests_mount.py - mounting, and unmounting without loss."""
import errno, os, pty, signal
from device import EXCLUSIVE, Region
from harness import CAPACITY_CHUNKS, CHUNK, DEVICE, HMMFS, command, data_of, mounted, raises, windows
from user import mounted_by_an_ordinary_user


def dirty_chunks(m, n, what):
    """Stores to each of n chunks of a file f; no close of the file comes after that writes them back."""
    fd = os.open(m.put("f", data_of(n * CHUNK)), os.O_RDWR)
    regions = [Region(fd, off, length) for off, length in windows(n * CHUNK)]
    os.close(fd)
    for r in regions:
        r.begin(EXCLUSIVE)
        for off in range(0, r.length, CHUNK):
            r.store(off, what)
        r.end()
    for r in regions:
        r.close()
    assert m.status()["dirty_bytes"] == min(n, CAPACITY_CHUNKS) * CHUNK
    want = bytearray(data_of(n * CHUNK))
    for c in range(n):
        want[c * CHUNK:c * CHUNK + len(what)] = what
    return want


def unmount(how):
    with mounted(writeback_interval="0") as m:
        want = dirty_chunks(m, 9, b"unmount")
        if isinstance(how, int):
            m.daemon.send_signal(how)
            assert m.wait() == 0
        else:
            m.umount(*[m.point if a == "." else a for a in how])
        assert m.backing("f") == want


def fusermount3_loses_nothing(): unmount(["fusermount3", "-u", "."])
def umount_loses_nothing(): unmount(["umount", "."])
def hmmfs_umount_loses_nothing(): unmount([HMMFS, "umount", "."])
def sigterm_loses_nothing(): unmount(signal.SIGTERM)
def sigint_loses_nothing(): unmount(signal.SIGINT)


def a_second_signal_loses_nothing():
    with mounted(writeback_interval="0") as m:
        want = dirty_chunks(m, 20, b"twice")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            m.daemon.send_signal(number)
        assert m.wait() == 0
        assert m.backing("f") == want


def lines_on(terminal):
    """What was written to a terminal that nobody has open any more."""
    said = b""
    while True:
        try:
            said += os.read(terminal, 4096)
        except OSError as e:  # a terminal's end of file
            assert e.errno == errno.EIO
            return said.decode().split("\r\n")


def unmount_shows_its_progress_on_a_terminal():
    with mounted(writeback_interval="0") as m:
        m.umount()
        terminal, daemons = pty.openpty()
        m.start(daemons)
        os.close(daemons)
        want = dirty_chunks(m, 24, b"progress")
        m.daemon.send_signal(signal.SIGTERM)
        assert m.wait() == 0
        said = lines_on(terminal)
        os.close(terminal)
        total = f"{min(24, CAPACITY_CHUNKS) * CHUNK / (1 << 20):.1f}"
        first = said.index("hmmfs: Terminated: writing everything back before the end")
        line, *after = said[first + 1:]
        assert after == [""], said
        states = line.split("\r")  # each replaces the one before
        assert states[0] == "" and states[-1] == f"hmmfs: writing back: {total} of {total} MiB", said
        assert all(s.startswith("hmmfs: writing back: ") and s.endswith(f" of {total} MiB") for s in states[1:]), said
        assert m.backing("f") == want


def busy_mount_says_who():
    with mounted() as m:
        with open(m.put("f", b"x")):
            assert str(os.getpid()) in command(HMMFS, "umount", m.point, ok=(1, 2))


def bad_options_are_one_line_and_no_mount():
    with mounted() as m:
        m.umount()
        for o in ("device=abacus", "capacity=1", "capacity=9999T", "chunk=3M", "chunk=1K", "bounce=x", "cpu_access=no", "nonsense",
                  "migrate=2", "writeback_interval=-1", "read_timeout=x", "lease_timeout=soon", "allow_kernels=me", "capacity="):
            e = command(HMMFS, "mount", m.source, m.point, "-o", o, ok=(2,))
            assert e.count("\n") == 1 and o.split("=")[0] in e, (o, e)
            assert not os.path.ismount(m.point), o
        inside = os.path.join(m.source, "inside")
        os.mkdir(inside)
        for a, b in ((m.source + "x", m.point), (HMMFS, m.point), (m.source, m.source), (m.source, m.point + "x"),
                     (m.point, m.point), (m.source, inside)):
            if b == inside:
                a, b = b, a  # SOURCE inside of the mount point
            assert command(HMMFS, "mount", a, b, "-o", f"device={DEVICE}", ok=(2,)).count("\n") == 1, (a, b)
            assert not os.path.ismount(b)


def daemon_without_privilege_serves_its_user():
    def served(hmmfs, source, point, mine):
        assert mine("sh", "-c", f"head -c 200000 /dev/zero > {point}/f").returncode == 0
        assert mine(hmmfs, "run", "fill", "7", f"{point}/f").returncode == 0
        assert b"1400000" in mine(hmmfs, "run", "sum", f"{point}/f").stdout
        raises(errno.EACCES, os.listdir, point)  # not even root gets in without allow_other
        assert mine(hmmfs, "umount", point).returncode == 0
        assert open(os.path.join(source, "f"), "rb").read() == b"\7" * 200000
    return mounted_by_an_ordinary_user(served)


def background_mount_lets_go_of_its_callers_pipes():
    """A shell's $(hmmfs mount ... 2>&1) waits for every process that has the pipe, the device's too."""
    with mounted() as m:
        m.umount()
        said = command(HMMFS, "mount", m.source, m.point, "-o", m.options, timeout=30)
        try:
            assert said.startswith(f"hmmfs: {m.source} on {m.point}: device {DEVICE} "), said
            assert m.status()["device"]["backend"] == DEVICE
        finally:
            command(HMMFS, "umount", m.point)
