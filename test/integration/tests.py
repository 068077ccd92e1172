"""tests.py - the integration tests: what applications, clients and users see of a real mount. Names are sentences."""
import ctypes, errno, mmap, os, signal, socket, stat, subprocess, sys, threading
from harness import (BUILD, CHUNK, DEVICE, EXCLUSIVE, HMMFS, SHARED, Region, command, data_of, leased, lib, mounted)

SIZES = [0, 1, 4095, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 20 * CHUNK + 5]


def raises(number, call, *args):
    try:
        call(*args)
    except OSError as e:
        assert e.errno == number, e
    else:
        raise AssertionError(f"no {errno.errorcode[number]}")


def address_of(m):
    return ctypes.addressof(ctypes.c_char.from_buffer(m))


# ---- mmap and leases ----

def mapping_made_before_residence_sees_the_device_and_is_seen():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(3 * CHUNK + 7)), os.O_RDWR)
        p = mmap.mmap(fd, 0)
        p[5] = 0x77  # dirty in the kernel only
        for turn in range(4):
            with leased(fd, EXCLUSIVE) as r:
                assert r.load()[5] == (0x77 + turn) & 255
                r.store(CHUNK + 1, bytes([turn, 9]))
                r.store(3 * CHUNK + 6, b"!")
            assert p[CHUNK + 1] == turn and p[CHUNK + 2] == 9 and p[-1] == ord("!")
            p[5] = (0x77 + turn + 1) & 255
        want = p[:]
        p.close(), os.close(fd)
        m.umount()
        assert m.backing("f") == want


def mapping_made_during_a_lease_waits_and_sees_its_stores():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR)
        seen = []
        r = Region(fd, 0, 2 * CHUNK).begin(EXCLUSIVE)
        # os.pread leaves the interpreter's lock while it waits; a load from a mapping would not
        reader = threading.Thread(target=lambda: seen.append(os.pread(fd, 1, 3)))
        reader.start()
        p = mmap.mmap(fd, 0)
        r.store(3, b"Z")
        assert seen == []
        r.end()
        reader.join()
        assert seen == [b"Z"] and p[3] == ord("Z")
        r.close(), p.close(), os.close(fd)
        m.umount()


def mapping_made_after_residence_sees_the_device():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR)
        with leased(fd, EXCLUSIVE) as r:
            r.store(CHUNK, b"after")
        p = mmap.mmap(fd, 0)
        assert p[CHUNK:CHUNK + 5] == b"after"
        p.close(), os.close(fd)
        m.umount()


def region_is_found_from_the_pointer_alone():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR)
        p = mmap.mmap(fd, 0)
        with leased(fd, EXCLUSIVE, length=100, address=address_of(p) + CHUNK - 50) as r:
            assert r.load() == data_of(2 * CHUNK)[CHUNK - 50:CHUNK + 50]
            r.store(50, b"X")
        assert os.pread(fd, 1, CHUNK) == b"X"
        os.close(fd)


def every_size_goes_to_the_device_and_back():
    with mounted(capacity="8M") as m:
        want = {}
        for n in SIZES:
            fd = os.open(m.put(f"f{n}", data_of(n)), os.O_RDWR)
            if n:
                with leased(fd, EXCLUSIVE) as r:
                    assert r.load() == data_of(n), n
                    r.store(n - 1, b"$")
                want[n] = data_of(n)[:-1] + b"$"
                assert os.pread(fd, n + 100, 0) == want[n]
            else:
                raises(errno.EINVAL, Region, fd, 0, 0)
                want[n] = b""
            os.close(fd)
        m.umount()
        for n in SIZES:
            assert m.backing(f"f{n}") == want[n], n


def two_processes_and_a_client_share_pages():
    with mounted() as m:
        m.put("f", bytes(4 * CHUNK))
        code = ("import mmap,os,sys\nfd=os.open(sys.argv[1],os.O_RDWR)\np=mmap.mmap(fd,0)\nk=int(sys.argv[2])\n"
                "for n in range(1,201):\n for c in range(0,len(p),4096):\n  p[c+k]=n\n  assert p[c+k]==n\n")
        cpu = [subprocess.Popen([sys.executable, "-c", code, m.path("f"), str(k)]) for k in (0, 1)]
        fd = os.open(m.path("f"), os.O_RDWR)
        turns = 0
        while turns < 20 or any(c.poll() is None for c in cpu):
            turns += 1
            with leased(fd, EXCLUSIVE) as r:
                for at in range(2, 4 * CHUNK, 4096):
                    r.store(at, bytes([turns & 255]))
        assert [c.wait() for c in cpu] == [0, 0]
        os.close(fd)
        m.umount()
        b = m.backing("f")
        for at in range(0, 4 * CHUNK, 4096):
            assert b[at:at + 3] == bytes([200, 200, turns & 255])


def cpu_that_never_stops_and_leases_both_progress():
    with mounted() as m:
        m.put("f", bytes(2 * CHUNK))
        code = ("import os,mmap,sys\nfd=os.open(sys.argv[1],os.O_RDWR)\np=mmap.mmap(fd,0)\nw=int(sys.argv[2])\n"
                "while True:\n for c in range(0,len(p),4096):\n  if w: p[c]=(p[c]+1)&255\n  else: p[c]\n os.write(1,b'.')\n")
        cpu = [subprocess.Popen([sys.executable, "-c", code, m.path("f"), str(w)], stdout=subprocess.PIPE) for w in (0, 1)]
        fd = os.open(m.path("f"), os.O_RDWR)
        try:
            for _ in range(30):
                with leased(fd, EXCLUSIVE) as r:
                    r.store(1, b"x")
                for c in cpu:
                    assert os.read(c.stdout.fileno(), 1)  # one more round of each
        finally:
            for c in cpu:
                c.kill(), c.wait()
        os.close(fd)
        m.umount()


def killed_client_loses_its_leases_and_not_its_data():
    with mounted() as m:
        m.put("f", data_of(3 * CHUNK))
        for mode in (SHARED, EXCLUSIVE):
            code = ("import os,sys\nsys.path.insert(0,sys.argv[2])\nfrom harness import *\nfd=os.open(sys.argv[1],os.O_RDWR)\n"
                    f"r=Region(fd,0,{3 * CHUNK}).begin({mode})\n" + ("r.store(7,b'kept')\n" if mode else "") +
                    "os.write(1,b'!')\nimport signal\nsignal.pause()\n")
            c = subprocess.Popen([sys.executable, "-c", code, m.path("f"), os.path.dirname(__file__)], stdout=subprocess.PIPE)
            assert os.read(c.stdout.fileno(), 1) == b"!"
            c.kill(), c.wait()
            with open(m.path("f"), "rb") as f:
                b = f.read()
        assert b[7:11] == b"kept"
        m.umount()
        assert m.backing("f")[7:11] == b"kept" and m.backing("f")[11:] == data_of(3 * CHUNK)[11:]


def reader_may_not_write():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDONLY)
        r = Region(fd, 0, CHUNK)
        raises(errno.EACCES, r.begin, EXCLUSIVE)
        assert r.begin(SHARED).load() == data_of(CHUNK)
        r.end(), r.close(), os.close(fd)


# ---- the file changes under the device ----

def sparse_file_stays_sparse():
    with mounted() as m:
        p = m.path("f")
        fd = os.open(p, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 8 * CHUNK)
        with leased(fd, SHARED) as r:
            assert r.load() == bytes(8 * CHUNK)
        os.fsync(fd)
        assert os.stat(os.path.join(m.source, "f")).st_blocks == 0
        with leased(fd, EXCLUSIVE, 2 * CHUNK, CHUNK) as r:
            r.store(5, b"data")
        os.close(fd)
        m.umount()
        assert os.stat(os.path.join(m.source, "f")).st_blocks * 512 <= 2 * CHUNK
        assert m.backing("f") == bytes(2 * CHUNK + 5) + b"data" + bytes(6 * CHUNK - 9)


def truncate_and_punch_under_a_lease():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(4 * CHUNK)), os.O_RDWR)
        with leased(fd, EXCLUSIVE) as r:
            r.store(10, b"before")
            command("fallocate", "-p", "-o", CHUNK, "-l", CHUNK, m.path("f"))
            assert r.load()[CHUNK:2 * CHUNK] == bytes(CHUNK)
            os.ftruncate(fd, 3 * CHUNK + 9)
            r.store(3 * CHUNK, b"0123456789discarded")
        os.ftruncate(fd, 4 * CHUNK)
        want = bytearray(data_of(4 * CHUNK))
        want[10:16] = b"before"
        want[CHUNK:2 * CHUNK] = bytes(CHUNK)
        want[3 * CHUNK:] = b"012345678" + bytes(CHUNK - 9)
        assert os.pread(fd, 5 * CHUNK, 0) == want
        os.close(fd)
        m.umount()
        assert m.backing("f") == want


def unlinked_and_renamed_files_keep_their_pages():
    with mounted() as m:
        fd = os.open(m.put("a", data_of(2 * CHUNK)), os.O_RDWR)
        gone = os.open(m.put("b", data_of(2 * CHUNK, 5)), os.O_RDWR)
        for f in (fd, gone):
            with leased(f, EXCLUSIVE) as r:
                r.store(1, b"new")
        os.rename(m.path("a"), m.path("c"))
        os.unlink(m.path("b"))
        for f in (fd, gone):
            with leased(f, EXCLUSIVE) as r:
                assert r.load()[1:4] == b"new"
                r.store(CHUNK, b"N")
            assert os.pread(f, 1, CHUNK) == b"N"
            os.close(f)
        m.umount()
        assert os.listdir(m.source) == ["c"] and m.backing("c")[CHUNK] == ord("N") and m.backing("c")[1:4] == b"new"


def fsync_during_an_exclusive_lease_reaches_the_backing():
    with mounted(writeback_interval="0") as m:
        fd = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR)
        with leased(fd, EXCLUSIVE) as r:
            r.store(0, b"one")
            os.fsync(fd)
            assert m.backing("f")[:3] == b"one"
            r.store(0, b"two")
        os.close(fd)
        m.umount()
        assert m.backing("f")[:3] == b"two"


def full_disk_refuses_the_exclusive_lease():
    with mounted() as m:
        command("mount", "-t", "tmpfs", "-o", "size=1m", "none", m.source)
        try:
            m.umount()
            m.start()
            fd = os.open(m.path("f"), os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 32 * CHUNK)
            r = Region(fd, 0, 32 * CHUNK)
            raises(errno.ENOSPC, r.begin, EXCLUSIVE)
            assert r.begin(SHARED).load() == bytes(32 * CHUNK)
            r.end(), r.close(), os.close(fd)
            m.umount()
        finally:
            m.clean()
            subprocess.run(["umount", "-l", m.source])


def larger_than_the_capacity_is_streamed():
    with mounted(capacity="2M") as m:
        n = 5 << 20
        p = m.put("f", data_of(n))
        assert str(sum(data_of(n))) in command(HMMFS, "run", "sum", p)
        command(HMMFS, "run", "xor", "0x5a", p)
        m.umount()
        assert m.backing("f") == bytes(b ^ 0x5a for b in data_of(n))


# ---- the command ----

def built_in_kernels_are_right():
    with mounted() as m:
        b = data_of(3 * CHUNK + 5)
        p = m.put("f", b)
        assert str(sum(b)) in command(HMMFS, "run", "sum", p)
        assert str(b.count(b"\x07")) in command(HMMFS, "run", "count", "\x07", p)
        command(HMMFS, "run", "fill", "7", p, "--range", f"{CHUNK - 3}:9")
        command(HMMFS, "run", "histogram", p, "--json")
        with open(p, "rb") as f:
            assert f.read() == b[:CHUNK - 3] + b"\7" * 9 + b[CHUNK + 6:]


def ones_own_kernels_run_and_fail_alone():
    with mounted() as m:
        b = data_of(CHUNK + 5)
        p, other = m.put("f", b), m.put("other", b)
        cl = os.path.join(os.path.dirname(m.source), "k.cl")
        with open(cl, "w") as f:
            f.write("__kernel void inc(__global uchar *d, ulong n){ulong i=get_global_id(0); if(i<n) d[i]+=1;}\n"
                    "__kernel void spin(__global uchar *d, ulong n){volatile __global uchar *v=d; while(v[0]!=255||v[1]!=254) ;}\n"
                    "__kernel void wild(__global uchar *d, ulong n){d[1UL<<46]=1;}\n")
        with open(cl + ".bad.cl", "w") as f:
            f.write("__kernel void inc(__global uchar *d, ulong n){ nonsense }\n")
        fd = os.open(other, os.O_RDWR)
        with leased(fd, EXCLUSIVE) as r:
            r.store(0, b"dirty")
        command(HMMFS, "run", cl + ":inc", p)
        with open(p, "rb") as f:
            assert f.read() == bytes((x + 1) & 255 for x in b)
        assert "nonsense" in command(HMMFS, "run", cl + ".bad.cl:inc", p, ok=(1, 2))
        command(HMMFS, "run", cl + ":spin", p, "--timeout", "1", ok=(1,))
        command(HMMFS, "run", cl + ":wild", p, ok=(1,))
        assert os.pread(fd, 5, 0) == b"dirty"
        os.close(fd)
        m.umount()
        assert m.backing("other") == b"dirty" + b[5:]


def status_and_map_have_their_keys():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR)
        with leased(fd, EXCLUSIVE):
            s = m.status()
            assert s["leases"] == 1 and s["resident_bytes"] == s["dirty_bytes"] == 2 * CHUNK == 2 * s["chunk_bytes"]
            assert {"backend", "name"} <= set(s["device"]) and s["device"]["backend"] == DEVICE and s["capacity_bytes"]
            assert {"fills", "fill_bytes", "writebacks", "writeback_bytes", "writeback_errors", "migrations_back", "evictions",
                    "invalidations", "held_reads", "device_read_bytes", "device_write_bytes", "hits",
                    "misses"} <= set(s["counters"])
            assert all(k in str(m.chunks("f")) for k in ("index", "state", "leases", "kernel_copies"))
        command(HMMFS, "evict", m.path("f"))
        assert m.status()["resident_bytes"] == 0
        command(HMMFS, "prefetch", m.path("f"))
        assert m.status()["resident_bytes"] == 2 * CHUNK and m.status()["dirty_bytes"] == 0
        command(HMMFS, "sync", m.point), command(HMMFS, "devices")


def policy_never_keeps_a_file_off_the_device():
    with mounted() as m:
        p = m.put("f", data_of(CHUNK))
        os.setxattr(p, "user.hmmfs.migrate", b"never")
        assert os.getxattr(p, "user.hmmfs.migrate") == b"never" and "user.hmmfs.migrate" in os.listxattr(p)
        fd = os.open(p, os.O_RDWR)
        raises(errno.EOPNOTSUPP, Region(fd, 0, CHUNK).begin, SHARED)
        raises(errno.EINVAL, os.setxattr, p, "user.hmmfs.migrate", b"perhaps")
        os.close(fd)


def files_of_policy_always_come_and_go():
    """Their prefetch may be the last to hold an inode whose name and descriptors are gone."""
    with mounted(migrate="always", capacity="512K") as m:
        for i in range(300):
            with open(m.path(f"f{i}"), "wb") as f:
                f.write(data_of(3000))
            with open(m.path(f"f{i}"), "rb") as f:
                os.unlink(m.path(f"f{i}"))
                assert f.read() == data_of(3000)
        m.umount()


def unmount(how):
    with mounted(writeback_interval="0") as m:
        fd = os.open(m.put("f", data_of(9 * CHUNK)), os.O_RDWR)
        r = Region(fd, 0, 9 * CHUNK).begin(EXCLUSIVE)
        os.close(fd)  # its flush comes before the stores: only the unmount can save them
        for c in range(9):
            r.store(c * CHUNK, b"unmount")
        r.end(), r.close()
        assert m.status()["dirty_bytes"] == 9 * CHUNK
        if isinstance(how, int):
            m.daemon.send_signal(how)
            assert m.wait() == 0
        else:
            m.umount(*[m.point if a == "." else a for a in how])
        for c in range(9):
            assert m.backing("f")[c * CHUNK:c * CHUNK + 7] == b"unmount"


def fusermount3_loses_nothing(): unmount(["fusermount3", "-u", "."])
def umount_loses_nothing(): unmount(["umount", "."])
def hmmfs_umount_loses_nothing(): unmount([HMMFS, "umount", "."])
def sigterm_loses_nothing(): unmount(signal.SIGTERM)
def sigint_loses_nothing(): unmount(signal.SIGINT)


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


def nonsense_on_the_control_socket_hurts_nobody():
    import fcntl, struct
    with mounted() as m:
        fd = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR)
        ticket_bytes = 16 + 108 + 4
        number = (2 << 30) | (ticket_bytes << 16) | (ord("h") << 8) | 0x4d
        with leased(fd, EXCLUSIVE) as r:
            r.store(0, b"safe")
            t = bytearray(ticket_bytes)
            fcntl.ioctl(fd, number, t)
            path = bytes(t[16:124]).split(b"\0")[0]
            for message in (b"", b"\0", b"A" * 200, bytes(60000), struct.pack("<16I", *[0xffffffff] * 16), bytes(t) * 2):
                s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                s.connect(path)
                try:
                    s.send(message)
                    assert s.recv(4096) == b"" or message == b""
                except OSError:
                    pass
                s.close()
        assert os.pread(fd, 4, 0) == b"safe"
        with leased(fd, EXCLUSIVE):
            pass
        os.close(fd)
        m.umount()


# ---- programs ----

def ordinary_programs_work():
    with mounted() as m:
        here = os.path.dirname(os.path.abspath(__file__))
        command("cp", "-a", here, m.path("copy"))
        command("diff", "-r", here, m.path("copy"))
        command("rsync", "-a", m.path("copy") + "/", m.path("copy2"))
        command("diff", "-r", here, m.path("copy2"))
        with open(m.path("a.c"), "w") as f:
            f.write("int main(void){return 7;}\n")
        command("cc", "-o", m.path("a"), m.path("a.c"))
        command(m.path("a"), ok=(7,))
        command("git", "init", "-q", m.path("g"))
        git = ["git", "-C", m.path("g"), "-c", "user.name=t", "-c", "user.email=t@t"]
        command("cp", m.path("a.c"), m.path("g"))
        command(*git, "add", "a.c"), command(*git, "commit", "-qm", "one")
        command("git", "clone", "-q", m.path("g"), m.path("h"))
        command("git", "-C", m.path("h"), "fsck", "--strict")
        sql = "pragma journal_mode=wal; create table t(x); insert into t values(1),(2); pragma wal_checkpoint; select sum(x) from t;"
        assert command("sqlite3", m.path("db"), sql).split()[-1] == "3"
        assert command("sqlite3", m.path("db"), "pragma integrity_check").strip() == "ok"
        m.umount()


# ---- what only some programs do ----

def operations_beyond_the_ordinary_work():
    import ctypes.util, fcntl, mmap as mm
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    with mounted() as m:
        at = lambda name: m.path(name)
        with open(at("a"), "wb") as f:
            f.write(data_of(3 * CHUNK))
        fd = os.open(m.point, os.O_TMPFILE | os.O_RDWR, 0o640)
        os.write(fd, b"tmpfile")
        assert libc.linkat(-100, f"/proc/self/fd/{fd}".encode(), -100, at("linked").encode(), 0x400) == 0  # AT_SYMLINK_FOLLOW
        os.close(fd)
        assert open(at("linked"), "rb").read() == b"tmpfile" and stat.S_IMODE(os.stat(at("linked")).st_mode) == 0o640
        rename = lambda a, b, flags: libc.renameat2(-100, at(a).encode(), -100, at(b).encode(), flags)
        assert rename("a", "linked", 1) == -1 and ctypes.get_errno() == errno.EEXIST
        assert rename("a", "linked", 2) == 0 and open(at("a"), "rb").read() == b"tmpfile"
        command(HMMFS, "prefetch", at("linked"))
        with open(at("linked"), "ab") as f:
            f.write(b"appended")
        assert open(at("linked"), "rb").read() == data_of(3 * CHUNK) + b"appended"
        with open(at("linked"), "rb") as source, open(at("copy"), "wb") as f:
            n = os.copy_file_range(source.fileno(), f.fileno(), CHUNK, CHUNK - 7, 0)
            assert n == CHUNK
        assert open(at("copy"), "rb").read() == data_of(3 * CHUNK)[CHUNK - 7:2 * CHUNK - 7]
        fd = os.open(at("linked"), os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(fd, 5 * CHUNK, CHUNK)
        assert os.fstat(fd).st_size == 6 * CHUNK and os.lseek(fd, 0, os.SEEK_HOLE) >= 3 * CHUNK
        os.ftruncate(fd, CHUNK + 1)
        os.ftruncate(fd, 2 * CHUNK)
        assert os.pread(fd, 2 * CHUNK, 0) == data_of(CHUNK + 1) + bytes(CHUNK - 1)
        os.close(fd)
        fd = os.open(at("linked"), os.O_RDWR | os.O_DIRECT)
        page = mm.mmap(-1, 4096)
        page[:] = b"D" * 4096
        os.pwrite(fd, page, CHUNK)
        page[:] = bytes(4096)
        assert os.preadv(fd, [page], CHUNK) == 4096 and page[:] == b"D" * 4096
        os.close(fd)
        assert open(at("linked"), "rb").read()[CHUNK:CHUNK + 4096] == b"D" * 4096
        os.mkfifo(at("fifo")), os.symlink("linked", at("link")), os.mkdir(at("dir")), os.rmdir(at("dir"))
        os.utime(at("linked"), ns=(10**18, 10**18 + 5)), os.chmod(at("linked"), 0o4755)
        s = os.stat(at("link"))
        assert s.st_mtime_ns == 10**18 + 5 and stat.S_IMODE(s.st_mode) == 0o4755 and os.readlink(at("link")) == "linked"
        for i in range(1000):
            os.close(os.open(at(f"many{i}"), os.O_CREAT | os.O_WRONLY))
        assert sum(n.startswith("many") for n in os.listdir(m.point)) == 1000
        with open(at("many0"), "w") as f, open(at("many0")) as g:
            os.unlink(at("many0"))
            f.write("still here"), f.flush()
            assert g.read() == "still here"
        m.umount()


def private_mapping_keeps_its_stores_to_itself():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR)
        p = mmap.mmap(fd, 0, mmap.MAP_PRIVATE)
        p[0:7] = b"private"
        with leased(fd, EXCLUSIVE) as r:
            assert r.load()[:7] == data_of(7)
            r.store(CHUNK, b"shared")
        assert p[0:7] == b"private" and p[CHUNK:CHUNK + 6] == b"shared"
        p.close(), os.close(fd)
        m.umount()


def ticket_of(fd):
    import fcntl
    t = bytearray(16 + 108 + 4)
    fcntl.ioctl(fd, (2 << 30) | (len(t) << 16) | (ord("h") << 8) | 0x4d, t)
    return bytes(t[:16]), bytes(t[16:124]).split(b"\0")[0]


def say_hello(token, path):
    import struct
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(path)
    s.send(struct.pack("<8I2Q16s", 0x48464d48, 1, 1, 1, 0, 0, 0, 0, 0, 0, token))
    answer = s.recv(4096)
    s.close()
    return answer


def fsync_under_a_lease_does_not_hang_with_a_reader_and_a_writer_about():
    """The reader's page is locked, the writer waits for it with the inode's lock, and fsync wants that lock."""
    with mounted(lease_timeout="4s") as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        r = Region(fd, 0, CHUNK).begin(EXCLUSIVE)
        r.store(100, b"device")
        program = "import os,sys; f=os.open(sys.argv[1],os.O_RDWR); "
        reader = subprocess.Popen([sys.executable, "-c", program + "os.pread(f,10,0)", m.path("f")])
        while m.status()["counters"]["held_reads"] == 0:
            pass
        writer = subprocess.Popen([sys.executable, "-c", program + "print(flush=True); os.pwrite(f,b'cpu',7)", m.path("f")],
                                  stdout=subprocess.PIPE)
        writer.stdout.readline()
        os.fsync(fd)
        r.end(), r.close()
        assert reader.wait() == 0 and writer.wait() == 0
        assert os.pread(fd, 3, 7) == b"cpu" and os.pread(fd, 6, 100) == b"device"
        writer.stdout.close(), os.close(fd)
        m.umount()


def a_ticket_works_once():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        token, path = ticket_of(fd)
        assert say_hello(bytes(16), path) == b""
        assert len(say_hello(token, path)) > 100
        assert say_hello(token, path) == b""
        os.close(fd)
        m.umount()


def a_second_signal_loses_nothing():
    with mounted(writeback_interval="0") as m:
        fd = os.open(m.put("f", data_of(20 * CHUNK)), os.O_RDWR)
        with leased(fd, EXCLUSIVE) as r:
            for c in range(20):
                r.store(c * CHUNK, b"twice")
        os.close(fd)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            m.daemon.send_signal(number)
        assert m.wait() == 0
        assert all(m.backing("f")[c * CHUNK:c * CHUNK + 5] == b"twice" for c in range(20))


def a_revoked_lease_is_told_and_its_memory_is_nobody_elses():
    with mounted(lease_timeout="100ms", read_timeout="0") as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        r = Region(fd, 0, CHUNK).begin(EXCLUSIVE)
        r.store(0, b"before")
        address = lib().hmmfs_data(r.r)
        assert os.pread(fd, 6, 0) == b"before"  # waits, and has the lease revoked
        ctypes.memmove(address, b"zombie", 6)
        assert os.pread(fd, 6, 0) == b"before"
        raises(errno.ESTALE, r.end)
        r.close(), os.close(fd)
        assert m.status()["counters"]["revocations"] == 1
        m.umount()
        assert m.backing("f")[:6] == b"before"


def daemon_without_privilege_serves_its_user():
    import pwd, shutil, tempfile
    if os.geteuid() != 0 or not BUILD or os.stat("/dev/fuse").st_mode & 6 != 6:
        return "needs root to become another, and a /dev/fuse open to all"
    uid = pwd.getpwnam("nobody").pw_uid
    scratch = tempfile.mkdtemp(prefix="hmmfs-test-")
    os.chmod(scratch, 0o755)
    for d, name in (("tools", "hmmfs"), ("client", "libhmmfs.so.0"), ("gpu", "hmmfs-device")):
        os.mkdir(os.path.join(scratch, d))
        shutil.copy(os.path.join(BUILD, d, name), os.path.join(scratch, d))
    source, point = os.path.join(scratch, "s"), os.path.join(scratch, "m")
    for d in (source, point):
        os.mkdir(d), os.chown(d, uid, uid)
    mine = lambda *a, **o: subprocess.run(a, user=uid, group=uid, extra_groups=[], env={"PATH": os.environ["PATH"], "HOME": scratch},
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, cwd="/", **o)
    hmmfs = os.path.join(scratch, "tools/hmmfs")
    try:
        r = mine(hmmfs, "mount", source, point, "-o", "device=host,capacity=4M,chunk=64K,bounce=8M")
        assert r.returncode == 0, r.stderr
        assert mine("sh", "-c", f"head -c 200000 /dev/zero > {point}/f").returncode == 0
        assert mine(hmmfs, "run", "fill", "7", f"{point}/f").returncode == 0
        assert b"1400000" in mine(hmmfs, "run", "sum", f"{point}/f").stdout
        raises(errno.EACCES, os.listdir, point)  # not even root gets in without allow_other
        assert mine(hmmfs, "umount", point).returncode == 0
        assert open(os.path.join(source, "f"), "rb").read() == b"\7" * 200000
    finally:
        mine("fusermount3", "-u", "-z", "-q", point)
        shutil.rmtree(scratch, ignore_errors=True)
