"""tests_fio.py - fio --verify in every ioengine that reads and writes files, on the mount and then on the backing."""
import os
from full import missing, moved_about, open_to_all, run, say
from harness import switch

# engine: whether it can have more than one request at a time, and whether O_DIRECT means anything to it
ENGINES = {"sync": (False, True), "psync": (False, True), "vsync": (False, True), "pvsync": (False, True), "pvsync2": (False, True),
           "libaio": (True, True), "io_uring": (True, True), "posixaio": (True, True), "mmap": (False, False), "splice": (False, False)}
BLOCKS = ("4k", "13k", "64k", "1m")  # 13k: no multiple of a page; direct I/O leaves it out
SIZE = "4m"


def _jobs(engine):
    for direct in (0, 1) if ENGINES[engine][1] else (0,):
        for bs in BLOCKS:
            if not (direct and bs == "13k"):
                yield direct, bs


def _verify(engine, **options):
    """Random writes with checksums and read back, while the file comes and goes; then what is on the backing is read and checked by fio, too."""
    why_not = missing("fio")
    if why_not:
        return why_not
    n = rounds = 0
    with open_to_all(**options) as m:
        jobs = {}
        for direct, bs in _jobs(engine):
            name = f"{direct}-{bs}"
            jobs[name] = ["fio", "--name=job", f"--size={SIZE}", f"--bs={bs}", "--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", "--end_fsync=1",
                          f"--ioengine={engine}", f"--direct={direct}", f"--iodepth={16 if ENGINES[engine][0] else 1}", "--verify_state_save=0", "--invalidate=1"]
            os.close(os.open(m.path(name), os.O_CREAT | os.O_WRONLY))
            with moved_about(m, name) as done:
                for more in (["--verify_backlog=64"], ["--rw=readwrite", "--rwmixread=40"]):
                    run(*jobs[name], f"--filename={m.path(name)}", *more, cwd="/tmp")
                    n += 1
            rounds += done[0]
            run(*jobs[name], f"--filename={m.path(name)}", cwd="/tmp")  # what the backing is to have
        m.umount()
        for name, job in jobs.items():
            run(*job, f"--filename={os.path.join(m.source, name)}", "--verify_only", cwd="/tmp")
    say(f"fio {engine} {options}: {n} jobs verified, {len(jobs)} files verified on the backing; prefetched, leased and evicted {rounds} times meanwhile")
    return None


def _over_uring(engine):
    with switch("Y") as is_on:
        return _verify(engine, capacity="256K", transport="uring") if is_on else "needs root, and a kernel with FUSE over io_uring"


def _tests():
    def test_of(call, *args, **options):
        return lambda: call(*args, **options)

    for engine in ENGINES:
        yield f"fio_{engine}_on_the_smallest_device", test_of(_verify, engine, capacity="256K")
    for engine in ("psync", "libaio", "io_uring", "mmap"):
        yield f"fio_{engine}_over_the_io_uring_transport", test_of(_over_uring, engine)
        yield f"fio_{engine}_on_files_that_the_kernel_passes", test_of(_verify, engine, migrate="never", migrate_min="1M")


globals().update(_tests())
