"""tests_command.py - the hmmfs command: kernels, status, map."""
import os
from device import EXCLUSIVE, leased
from harness import CAPACITY, CHUNK, DEVICE, HMMFS, command, data_of, mounted


def larger_than_the_capacity_is_streamed():
    with mounted() as m:
        n = 2 * CAPACITY + CHUNK + 5
        p = m.put("f", data_of(n))
        assert str(sum(data_of(n))) in command(HMMFS, "run", "sum", p)
        command(HMMFS, "run", "xor", "0x5a", p)
        m.umount()
        assert m.backing("f") == bytes(b ^ 0x5a for b in data_of(n))


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
