"""tests_stress_ng.py - stress-ng's stressors that work on files, each alone, with --verify.

One that fails on the mount is tried in a twin directory of the backing: what fails there in the same words is not the mount's doing."""
import re
from full import missing, open_to_all, run, say

SECONDS = 2
PLAIN = ("access aio aiol chattr chdir chmod chown dentry dir dirmany dnotify fanotify fcntl fiemap file-ioctl filename flock fpunch fsize fstat getdent "
         "handle inode-flags inotify io io-uring lease link locka lockf lockofd mknod mmapmany open rename symlink touch utime verity xattr").split()
JOBS = {name: [f"--{name}", "2"] for name in PLAIN} | {
    "copy-file": ["--copy-file", "2", "--copy-file-bytes", "128M"], "dirdeep": ["--dirdeep", "2", "--dirdeep-inodes", "5000"],
    "fallocate": ["--fallocate", "2", "--fallocate-bytes", "16M"], "hdd": ["--hdd", "2", "--hdd-bytes", "16M"],
    "hdd, direct": ["--hdd", "2", "--hdd-bytes", "16M", "--hdd-opts", "direct,rd-rnd,wr-rnd"],
    "hdd, synchronous": ["--hdd", "2", "--hdd-bytes", "16M", "--hdd-opts", "dsync,rd-seq,wr-seq,utimes"], "iomix": ["--iomix", "2", "--iomix-bytes", "16M"],
    "mmap": ["--mmap", "2", "--mmap-bytes", "16M", "--mmap-file"], "mmap, asynchronous": ["--mmap", "2", "--mmap-bytes", "16M", "--mmap-file", "--mmap-async"],
    "mmap, protection": ["--mmap", "2", "--mmap-bytes", "16M", "--mmap-file", "--mmap-mprotect"], "msync": ["--msync", "2", "--msync-bytes", "8M"],
    "readahead": ["--readahead", "2", "--readahead-bytes", "16M"], "revio": ["--revio", "2", "--revio-bytes", "16M"], "seek": ["--seek", "2", "--seek-size", "16M"],
    "sendfile": ["--sendfile", "2", "--sendfile-size", "8M"], "sync-file": ["--sync-file", "2", "--sync-file-bytes", "16M"]}
COMPLAINT = re.compile(r"^stress-ng: (?:fail|error): +\[\d+\] +(.*)$", re.M)


def _complaints(job, directory):
    """What it said that is wrong, without numbers and paths, which are of the moment; whether it had nothing to do here."""
    said = run("stress-ng", "--verify", "--timeout", f"{SECONDS}s", *job, "--temp-path", directory, ok=None, seconds=150)
    wrong = {re.sub(r"/\S+|0x[0-9a-f]+|\d+", "N", line) for line in COMPLAINT.findall(said)}
    assert wrong or "successful run completed" in said, said
    return wrong, "skipping" in said


def _stress(**options):
    why_not = missing("stress-ng")
    if why_not:
        return why_not
    passed, nothing_to_do, excused, failed = [], [], {}, {}
    with open_to_all(**options) as m:
        for name, job in JOBS.items():
            wrong, is_skipped = _complaints(job, m.point)
            if not wrong:
                (nothing_to_do if is_skipped else passed).append(name)
                continue
            on_the_backing, _ = _complaints(job, m.twin)
            (excused if wrong <= on_the_backing else failed)[name] = (sorted(wrong), sorted(on_the_backing))
        m.umount()
    say(f"stress-ng {options}: {len(passed)} passed; nothing to do for {', '.join(nothing_to_do) or 'none'}; as on the backing: {excused}")
    assert not failed, "\n".join(f"{name}: on the mount {a}; on the backing {b}" for name, (a, b) in failed.items())
    return None


def stress_ng_on_files_through_the_daemon(): return _stress(capacity="1M")


def stress_ng_on_files_that_the_kernel_passes(): return _stress(migrate="never", migrate_min="1M")


def stress_ng_on_files_that_come_to_the_device_by_themselves(): return _stress(migrate="always", capacity="1M", coherent=True)
