"""user.py - a mount whose daemon is an ordinary user's."""
import ctypes, os, pwd, resource, shutil, stat, subprocess, tempfile, traceback
from harness import BUILD


def open_dev_fuse(scratch):
    """Has a /dev/fuse open to all, as distributions do, in a mount namespace of this process's own."""
    node, libc = os.path.join(scratch, "fuse"), ctypes.CDLL(None, use_errno=True)
    os.mknod(node, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    os.chmod(node, 0o666)
    MS_BIND, MS_REC, MS_PRIVATE, CLONE_NEWNS = 0x1000, 0x4000, 1 << 18, 0x20000
    assert libc.unshare(CLONE_NEWNS) == 0 and libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None) == 0
    assert libc.mount(node.encode(), b"/dev/fuse", None, ctypes.c_ulong(MS_BIND), None) == 0, os.strerror(ctypes.get_errno())


def serve(work, descriptors, options):
    uid = pwd.getpwnam("nobody").pw_uid
    scratch = tempfile.mkdtemp(prefix="hmmfs-test-")
    os.chmod(scratch, 0o755)
    for d, name in (("tools", "hmmfs"), ("client", "libhmmfs.so.0"), ("gpu", "hmmfs-device")):
        os.mkdir(os.path.join(scratch, d))
        shutil.copy(os.path.join(BUILD, d, name), os.path.join(scratch, d))
    if os.stat("/dev/fuse").st_mode & 6 != 6:
        open_dev_fuse(scratch)
    source, point = os.path.join(scratch, "s"), os.path.join(scratch, "m")
    for d in (source, point):
        os.mkdir(d), os.chown(d, uid, uid)
    limit = lambda: descriptors and resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    mine = lambda *a, **o: subprocess.run(a, user=uid, group=uid, extra_groups=[], env={"PATH": os.environ["PATH"], "HOME": scratch}, cwd="/",
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100, **o)
    hmmfs = os.path.join(scratch, "tools/hmmfs")
    try:
        r = mine(hmmfs, "mount", source, point, "-o", "device=host,capacity=4M,chunk=64K,bounce=8M" + options, preexec_fn=limit)
        assert r.returncode == 0, r.stderr
        work(hmmfs, source, point, mine)
    finally:
        mine("fusermount3", "-u", "-z", "-q", point)
        shutil.rmtree(scratch, ignore_errors=True)


def mounted_by_an_ordinary_user(work, descriptors=None, options=""):
    """work(hmmfs, source, point, mine), where mine runs a command as that user."""
    if os.geteuid() != 0 or not BUILD:
        return "needs root to become another user, and hmmfs built and not installed"
    child = os.fork()  # the namespace is to end with it
    if child == 0:
        try:
            serve(work, descriptors, options)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
