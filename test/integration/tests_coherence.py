"""tests_coherence.py - what leases, mappings, reads and writes of one file see of each other."""
import errno, mmap, os, subprocess, sys
from device import EXCLUSIVE, SHARED, Region, address_of, cannot_address, leased, states
from harness import CHUNK, data_of, mounted, raises, wait_until, windows

SIZES = [0, 1, 4095, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 20 * CHUNK + 5]


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
    with mounted(read_timeout="0") as m:  # as long as it takes: no snapshot
        fd = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR)
        why_not = cannot_address(fd)
        if why_not:
            return why_not
        r = Region(fd, 0, 2 * CHUNK).begin(EXCLUSIVE)
        code = "import mmap,os,sys\np=mmap.mmap(os.open(sys.argv[1],os.O_RDONLY),0,prot=mmap.PROT_READ)\nos.write(1,p[3:4])\n"
        reader = subprocess.Popen([sys.executable, "-c", code, m.path("f")], stdout=subprocess.PIPE)
        wait_until(lambda: m.status()["counters"]["held_reads"] == 1, "the mapping's first load is held")
        r.store(3, b"Z")
        p = mmap.mmap(fd, 0)
        assert reader.poll() is None
        r.end()
        assert reader.communicate() == (b"Z", None) and reader.returncode == 0 and p[3] == ord("Z")
        r.close(), p.close(), os.close(fd)
        m.umount()


def write_whose_pages_are_invalidated_before_it_is_sent_is_seen():
    """write(2) has filled its first page and waits for its second one's source, which a lease of another file keeps from it."""
    with mounted(read_timeout="0") as m:
        data = data_of(2 * CHUNK)
        fd, other = os.open(m.put("f", data), os.O_RDWR), os.open(m.put("other", data), os.O_RDWR)
        r = Region(other, 0, CHUNK).begin(EXCLUSIVE)
        code = "import mmap,os,sys\np=mmap.mmap(os.open(sys.argv[2],os.O_RDONLY),0,prot=mmap.PROT_READ)\n" \
               "os.writev(os.open(sys.argv[1],os.O_RDWR),[b'w'*4096,memoryview(p)[:4096]])\n"
        writer = subprocess.Popen([sys.executable, "-c", code, m.path("f"), m.path("other")])
        wait_until(lambda: m.status()["counters"]["held_reads"] == 1, "the writer waits for its source")
        with leased(fd, SHARED):
            pass
        assert os.pread(fd, 4096, 0) == data[:4096]  # the page was dropped, and its WRITE is still to come
        r.end()
        assert writer.wait() == 0
        wait_until(lambda: os.pread(fd, 8192, 0) == b"w" * 4096 + data[:4096], "the kernel's old page is gone")
        r.close(), os.close(fd), os.close(other)
        m.umount()
        assert m.backing("f") == b"w" * 4096 + data[:4096] + data[8192:]


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
        with leased(fd, EXCLUSIVE, CHUNK - 50, 100, address_of(p) + CHUNK - 50) as r:
            assert r.load() == data_of(2 * CHUNK)[CHUNK - 50:CHUNK + 50]
            r.store(50, b"X")
        assert os.pread(fd, 1, CHUNK) == b"X"
        os.close(fd)


def every_size_goes_to_the_device_and_back():
    with mounted() as m:
        want = {}
        for n in SIZES:
            fd = os.open(m.put(f"f{n}", data_of(n)), os.O_RDWR)
            want[n] = bytearray(data_of(n))
            for off, length in windows(n):
                with leased(fd, EXCLUSIVE, off, length) as r:
                    assert r.load() == want[n][off:off + length], (n, off)
                    r.store(length - 1, b"$")
                want[n][off + length - 1] = ord("$")
            if n:
                assert os.pread(fd, n + 100, 0) == want[n]
            else:
                raises(errno.EINVAL, Region, fd, 0, 0)
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


def opening_a_file_under_a_lease_keeps_its_other_chunks():
    """The lease's reservation of blocks moves the backing's ctime: our own doing, and no reason to drop anything."""
    with mounted(writeback_interval="0") as m:
        fd = os.open(m.put("f", data_of(3 * CHUNK)), os.O_RDWR)
        with leased(fd, SHARED):
            pass
        with leased(fd, EXCLUSIVE, 0, CHUNK):
            os.close(os.open(m.path("f"), os.O_RDONLY))
            assert states(fd) == {0: "DIRTY", 1: "CLEAN", 2: "CLEAN"}, states(fd)
        os.close(fd)
        m.umount()


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


def fsync_under_a_lease_does_not_hang_with_a_reader_and_a_writer_about():
    """The reader's page is locked, the writer waits for it with the inode's lock, and fsync wants that lock."""
    with mounted(lease_timeout="4s") as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        r = Region(fd, 0, CHUNK).begin(EXCLUSIVE)
        r.store(100, b"device")
        program = "import os,sys; f=os.open(sys.argv[1],os.O_RDWR); "
        reader = subprocess.Popen([sys.executable, "-c", program + "os.pread(f,10,0)", m.path("f")])
        wait_until(lambda: m.status()["counters"]["held_reads"] > 0, "the read is held")
        writer = subprocess.Popen([sys.executable, "-c", program + "print(flush=True); os.pwrite(f,b'cpu',7)", m.path("f")],
                                  stdout=subprocess.PIPE)
        writer.stdout.readline()
        os.fsync(fd)
        r.end(), r.close()
        assert reader.wait() == 0 and writer.wait() == 0
        assert os.pread(fd, 3, 7) == b"cpu" and os.pread(fd, 6, 100) == b"device"
        writer.stdout.close(), os.close(fd)
        m.umount()
