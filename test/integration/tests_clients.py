"""tests_clients.py - clients of the control socket: what they are told, and what they can't do to others."""
import ctypes, errno, fcntl, os, resource, socket, struct, subprocess, sys, traceback
from device import EXCLUSIVE, SHARED, Region, cannot_address, leased, store_at
from harness import CHUNK, data_of, mounted, raises

MAGIC, HELLO, REGION_OPEN, ACQUIRE, RELEASE, STATUS, REPLY, REVOKED = 0x48464d48, 1, 2, 4, 5, 9, 12, 14  # client/protocol.h


def reader_may_not_write():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDONLY)
        r = Region(fd, 0, CHUNK)
        raises(errno.EACCES, r.begin, EXCLUSIVE)
        assert r.begin(SHARED).load() == data_of(CHUNK)
        r.end(), r.close(), os.close(fd)


def killed_client_loses_its_leases_and_not_its_data():
    with mounted() as m:
        m.put("f", data_of(3 * CHUNK))
        for mode in (SHARED, EXCLUSIVE):
            code = ("import os,sys\nsys.path.insert(0,sys.argv[2])\nfrom device import Region\nfd=os.open(sys.argv[1],os.O_RDWR)\n"
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


def a_revoked_lease_is_told_and_its_memory_is_nobody_elses():
    with mounted(lease_timeout="100ms", read_timeout="0") as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        why_not = cannot_address(fd)
        if why_not:
            return why_not
        r = Region(fd, 0, CHUNK).begin(EXCLUSIVE)
        r.store(0, b"before")
        address = r.address()
        assert os.pread(fd, 6, 0) == b"before"  # waits, and has the lease revoked
        store_at(address, b"zombie")
        assert os.pread(fd, 6, 0) == b"before"
        raises(errno.ESTALE, r.end)
        r.close(), os.close(fd)
        assert m.status()["counters"]["revocations"] == 1
        m.umount()
        assert m.backing("f")[:6] == b"before"


def ticket_of(fd):
    t = bytearray(16 + 108 + 4)
    fcntl.ioctl(fd, (2 << 30) | (len(t) << 16) | (ord("h") << 8) | 0x4d, t)
    return bytes(t[:16]), bytes(t[16:124]).split(b"\0")[0]


def request(op, token=bytes(16), magic=MAGIC, version=2, region=0, flags=0, length=0):
    return struct.pack("<8I2Q16s", magic, version, op, 1, region, flags, 0, 0, 0, length, token)


def connected(path):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(path)
    return s


def is_closed(s):
    """The daemon closed it; with what we sent still unread, recv says so with an error."""
    try:
        return s.recv(4096) == b""
    except ConnectionResetError:
        return True


def say_hello(token, path):
    s = connected(path)
    s.send(request(HELLO, token))
    with s:
        return s.recv(4096)


def as_nobody(call):
    """Makes the call in a child that has become another user; its exit status: 0, or the errno of what it raised."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([]), os.setgid(65534), os.setuid(65534)
            call()
            os._exit(0)
        except OSError as e:
            os._exit(e.errno)
        except BaseException:
            traceback.print_exc()
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def other_users_get_no_further_than_the_mount_allows():
    if os.geteuid() != 0:
        return "needs root to become another user"
    with mounted() as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        token, path = ticket_of(fd)
        assert as_nobody(lambda: connected(path)) == errno.EACCES
        assert as_nobody(lambda: os.listdir(m.point)) == errno.EACCES
        assert len(say_hello(token, path)) > 100
        os.close(fd)
        m.umount()


def another_users_ticket_does_not_work():
    if os.geteuid() != 0:
        return "needs root to become another user"
    with mounted(allow_other=True) as m:
        os.chmod(os.path.dirname(m.source), 0o711)
        os.chmod(m.source, 0o755)
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        os.chmod(m.path("f"), 0o644)
        (token, path), r = ticket_of(fd), Region(fd, 0, CHUNK).begin(EXCLUSIVE)
        r.store(0, b"mine")

        def steal():
            for stolen in (token, bytes(16)):
                assert say_hello(stolen, path) == b""
            assert len(say_hello(*ticket_of(os.open(m.path("f"), os.O_RDONLY)))) > 100
            with connected(path) as s:
                s.send(b"nonsense")
                assert is_closed(s)
            raises(errno.EACCES, os.open, m.path("f"), os.O_RDWR)
        assert as_nobody(steal) == 0
        r.end(), r.close()
        assert len(say_hello(token, path)) > 100  # the attempt has not used it up
        assert os.pread(fd, 4, 0) == b"mine"
        os.close(fd)
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


def nonsense_on_the_control_socket_ends_that_session_and_no_other():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR)
        token, path = ticket_of(fd)
        status = request(STATUS)
        hello = request(HELLO, token)
        r = Region(fd, 0, 2 * CHUNK)
        for message in (b"", b"\0", b"A" * 200, bytes(60000), b"\xff" * 64, bytes(64), status, hello[:-1], hello + b"\0",
                        request(HELLO, token, version=1), request(HELLO, token, magic=7), request(99, token)):
            r.begin(EXCLUSIVE).store(0, b"safe")
            s = connected(path)
            s.send(message)
            assert is_closed(s), message[:64]
            s.close()
            r.end()
        assert len(say_hello(token, path)) > 100  # none of these used the ticket up
        s = connected(path)
        s.send(request(HELLO, ticket_of(fd)[0]))
        assert len(s.recv(4096)) > 100
        s.send(status)
        assert len(s.recv(4096)) > 100
        s.send(b"nonsense after a good start")
        assert is_closed(s)
        s.close(), r.close()
        assert os.pread(fd, 4, 0) == b"safe"
        os.close(fd)
        m.umount()


def a_lease_that_its_own_client_waits_for_is_revoked_too():
    """One that asks for what it holds itself, with no limit, would keep everybody from it for ever."""
    with mounted(lease_timeout="100ms") as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        token, path = ticket_of(fd)
        with connected(path) as s:
            s.settimeout(60)

            def ask(op, **more):
                s.send(request(op, **more))
                return answer()

            def answer():
                data = s.recv(65536)
                return struct.unpack_from("<I", data, 4) + struct.unpack_from("<iI", data, 12)  # op, status, region
            assert ask(HELLO, token=token)[1] == 0
            first, second = (ask(REGION_OPEN, length=CHUNK)[2] for _ in range(2))
            assert ask(ACQUIRE, region=first, flags=1)[:2] == (REPLY, 0)
            assert ask(ACQUIRE, region=second, flags=1) == (REVOKED, 0, first)
            assert answer()[:2] == (REPLY, 0)
            assert ask(RELEASE, region=first)[:2] == (REPLY, -errno.ESTALE)
            assert ask(RELEASE, region=second)[:2] == (REPLY, 0)
        os.close(fd)
        m.umount()


def chunks_that_could_not_be_handed_out_are_at_the_next_acquire():
    """The daemon runs out of descriptors in the middle of it."""
    with mounted() as m:
        fd = os.open(m.put("f", data_of(4 * CHUNK)), os.O_RDWR)
        why_not = cannot_address(fd)
        if why_not:
            return why_not
        resident, r = Region(fd, 0, 4 * CHUNK).begin(SHARED), Region(fd, 0, 4 * CHUNK)
        used = set(map(int, os.listdir(f"/proc/{m.daemon.pid}/fd")))
        limit = [n for n in range(len(used) + 2) if n not in used][1] + 1  # two are free
        before = resource.prlimit(m.daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(m.daemon.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
        raises(errno.EMFILE, r.begin, SHARED)
        resource.prlimit(m.daemon.pid, resource.RLIMIT_NOFILE, before)
        assert r.begin(SHARED).load() == data_of(4 * CHUNK)
        r.end(), r.close(), resident.end(), resident.close(), os.close(fd)
        m.umount()
