"""tests_command.py - the hmmfs command: kernels, status, map."""
import glob, json, os, re, struct
from device import EXCLUSIVE, leased
from harness import CAPACITY, CHUNK, DEVICE, HMMFS, command, data_of, mounted


def occurrences(data, pattern):
    return sum(data.startswith(pattern, i) for i in range(len(data)))


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
        with open(p, "rb") as f:
            assert f.read() == b[:CHUNK - 3] + b"\7" * 9 + b[CHUNK + 6:]


def results_are_those_of_the_range_in_every_form():
    """Built-in kernels as text, JSON and --out, of whole files, of ranges, and of more than the device holds."""
    histogram = lambda b: [b.count(bytes([i])) for i in range(256)]
    with mounted() as m:
        b, large = data_of(3 * CHUNK + 5), data_of(2 * CAPACITY + 7, 9)
        p, q = m.put("f", b), m.put("large", large)
        out = os.path.join(os.path.dirname(m.source), "out")
        for path, data in ((p, b), (q, large)):
            across = data[CHUNK - 1:CHUNK + 1]  # occurs at the border of each two chunks
            for off, n in ((0, len(data)), (0, 1), (CHUNK - 1, 2), (1, 2 * CHUNK), (len(data) - 1, 1), (CHUNK, CHUNK)):
                part = data[off:off + n]
                more = ["--range", f"{off}:{n}", "--json", "--out", out, path]
                result = lambda *kernel: json.loads(command(HMMFS, "run", *kernel, *more))[0]
                for kernel, want in ((["histogram"], histogram(part)), (["sum"], sum(part)), (["count", across.decode()], occurrences(part, across))):
                    said = result(*kernel)
                    assert (said["result"], said["bytes"]) == (want, n), (kernel, off, n)
                    with open(out, "rb") as f:
                        assert f.read() == struct.pack("256Q", *want) if kernel == ["histogram"] else struct.pack("Q", want)
        text = command(HMMFS, "run", "histogram", p)
        assert text == "".join(f"{p}: {i:3} {n}\n" for i, n in enumerate(histogram(b)) if n)
        for wrong in ("0:0", "5", "a:b", f"{len(b)}:1", f"0:{len(b) + 1}", "-1:3"):
            assert "--range" in command(HMMFS, "run", "sum", p, "--range", wrong, ok=(2,)), wrong
        command(HMMFS, "run", "fill", "7", q, "--range", f"{CHUNK - 3}:{CAPACITY + 9}")
        command(HMMFS, "run", "xor", "255", q, "--range", f"{CAPACITY - 1}:2")
        want = bytearray(large)
        want[CHUNK - 3:CHUNK + CAPACITY + 6] = b"\7" * (CAPACITY + 9)
        want[CAPACITY - 1:CAPACITY + 1] = b"\xf8\xf8"
        m.umount()
        assert m.backing("large") == want and m.backing("f") == b


KERNELS = """
KERNEL void first(BYTES d, LENGTH n, int add, BYTES o) { LENGTH i = ITEM; if (i < 8) o[i] = d[i] + add; }
KERNEL void inc(BYTES d, LENGTH n) { LENGTH i = ITEM; if (i < n) d[i] += 1; }
KERNEL void spin(BYTES d, LENGTH n) { volatile BYTES v = d; while (v[0] != 255 || v[1] != 254) ; }
KERNEL void wild(BYTES d, LENGTH n) { d[(LENGTH)1 << 46] = 1; }
"""
WORDS = {".cl": {"KERNEL": "__kernel", "BYTES": "__global uchar *", "LENGTH": "ulong", "ITEM": "get_global_id(0)"},
         ".cu": {"KERNEL": 'extern "C" __global__', "BYTES": "unsigned char *", "LENGTH": "unsigned long long",
                 "ITEM": "(unsigned long long)blockIdx.x * blockDim.x + threadIdx.x"}}


def own_kernels(m):
    """A file of kernels in the language of the device."""
    suffix, text = ".cu" if DEVICE.startswith("cuda") else ".cl", KERNELS
    for word, meaning in WORDS[suffix].items():
        text = text.replace(word, meaning)
    path = os.path.join(os.path.dirname(m.source), "k" + suffix)
    with open(path, "w") as f:
        f.write(text)
    return path


def out_of_a_kernel_of_ones_own_and_of_several_files_is_written():
    with mounted() as m:
        b = data_of(CHUNK + 5)
        p, q = m.put("f", b), m.put("g", data_of(100, 7))
        cl, out = own_kernels(m), os.path.join(os.path.dirname(m.source), "out")
        command(HMMFS, "run", cl + ":first", p, q, "--arg", "int:3", "--arg", "out:8", "--items", "8", "--shared", "--out", out)
        with open(out, "rb") as f:
            assert f.read() == bytes((x + 3) & 255 for x in b[:8] + data_of(8, 7))
        # a range's first byte is data[0], wherever in a chunk it lies
        command(HMMFS, "run", cl + ":first", p, "--range", f"{CHUNK - 3}:8", "--arg", "int:1", "--arg", "out:8", "--shared", "--out", out)
        with open(out, "rb") as f:
            assert f.read() == bytes((x + 1) & 255 for x in b[CHUNK - 3:CHUNK + 5])
        m.umount()
        assert m.backing("f") == b


def ones_own_kernels_run_and_fail_alone():
    with mounted() as m:
        b = data_of(CHUNK + 5)
        p, other = m.put("f", b), m.put("other", b)
        cl = own_kernels(m)
        bad = os.path.join(os.path.dirname(m.source), "bad" + os.path.splitext(cl)[1])
        with open(bad, "w") as f:
            f.write("#error nonsense\n")
        fd = os.open(other, os.O_RDWR)
        with leased(fd, EXCLUSIVE) as r:
            r.store(0, b"dirty")
        command(HMMFS, "run", cl + ":inc", p)
        with open(p, "rb") as f:
            assert f.read() == bytes((x + 1) & 255 for x in b)
        assert "nonsense" in command(HMMFS, "run", bad + ":inc", p, ok=(1, 2))
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


def commands_say_what_a_fifo_is():
    """And do not wait for its writer."""
    with mounted() as m:
        os.mkfifo(m.path("fifo"))
        for words in (("prefetch",), ("evict",), ("map",), ("run", "sum")):
            said = command(HMMFS, *words, m.path("fifo"), ok=(1, 2), timeout=60)
            assert said.count("\n") == 1 and "fifo" in said, said
        m.umount()


def each_test_that_the_docs_name_exists():
    """docs/testing.md says where each promise is tested."""
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
    with open(os.path.join(root, "docs/testing.md")) as f:
        named = set(re.findall(r"\b[a-z]+(?:_[a-z]+){2,}\b", f.read()))
    there = ""
    for kind in ("py", "c", "sh"):
        for path in glob.glob(os.path.join(root, "test", "**", f"*.{kind}"), recursive=True):
            with open(path) as f:
                there += f.read()
    assert named and not {n for n in named if n not in there}, {n for n in named if n not in there}
