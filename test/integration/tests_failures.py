"""tests_failures.py - a backing that is full or fails."""
import errno, os, subprocess
from device import EXCLUSIVE, SHARED, Region
from harness import CHUNK, command, mounted, raises


def full_disk_refuses_the_exclusive_lease():
    with mounted() as m:
        command("mount", "-t", "tmpfs", "-o", f"size={2 * CHUNK}", "none", m.source)
        try:
            m.umount()
            m.start()
            fd = os.open(m.path("f"), os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 4 * CHUNK)
            r = Region(fd, 0, 4 * CHUNK)
            raises(errno.ENOSPC, r.begin, EXCLUSIVE)
            assert r.begin(SHARED).load() == bytes(4 * CHUNK)
            r.end(), r.close(), os.close(fd)
            m.umount()
        finally:
            m.clean()
            subprocess.run(["umount", "-l", m.source])
