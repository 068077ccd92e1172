"""tests_sqlite.py - SQLite in each journal mode, with writers and readers killed in the middle, and with the daemon killed.

Money moves between accounts, so the sum never changes; a writer says a transaction's number after COMMIT has returned. Debian has
neither of SQLite's own speedtest1 and threadtest programs."""
import os, random, signal, sqlite3, subprocess, sys, time
from full import moved_about, open_to_all, run, say
from harness import wait_until

ACCOUNTS, BALANCE, ROUNDS = 200, 1000, 4
WORKER = """
import random, sqlite3, sys
path, number = sys.argv[1], int(sys.argv[2])
db = sqlite3.connect(path, timeout=60, isolation_level=None)
db.execute("pragma synchronous=full"), db.execute("pragma mmap_size=%d" % (1 << 20 if number % 2 else 0))
n = db.execute("select n from done where worker=?", (number,)).fetchone()[0]
while True:
    n += 1
    if number < 3:
        a, b = random.sample(range(200), 2)
        db.execute("begin immediate")
        db.execute("update account set balance = balance - 1, note = ? where id = ?", ("x" * random.randrange(2000), a))
        db.execute("update account set balance = balance + 1 where id = ?", (b,))
        db.execute("update done set n = ? where worker = ?", (n, number))
        db.execute("commit")
        print(n, flush=True)
    else:
        total, = db.execute("select sum(balance) from account").fetchone()
        assert total == 200 * 1000, total
        print(n, flush=True)
"""


def _make(path, mode):
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute(f"pragma journal_mode={mode}").fetchone()[0] == mode
    db.execute("create table account(id integer primary key, balance integer, note text)"), db.execute("create table done(worker integer primary key, n integer)")
    db.executemany("insert into account values(?, ?, '')", [(i, BALANCE) for i in range(ACCOUNTS)]), db.executemany("insert into done values(?, 0)", [(i,) for i in range(5)])
    db.close()


def _check(path, said):
    """Whole, nothing lost of what was committed, and nothing made up: a last COMMIT may have worked without being heard of."""
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert db.execute("select sum(balance) from account").fetchone()[0] == ACCOUNTS * BALANCE
    done = dict(db.execute("select worker, n from done"))
    db.close()
    for worker, n in said.items():
        assert worker >= 3 or done[worker] in (n, n + 1), (worker, n, done)
        said[worker] = done[worker]
    return sum(done.values())


def _work(path, said, kill):
    """Three who write and two who read, until kill(children) has killed; said: what each has heard to be committed. A line is whole or not there."""
    logs = {i: f"{said['logs']}/{i}" for i in range(5)}
    children = []
    for i in logs:
        with open(logs[i], "wb") as log, open(logs[i] + ".errors", "ab") as errors:
            children.append(subprocess.Popen([sys.executable, "-c", WORKER, path, str(i)], stdout=log, stderr=errors))
    lines = lambda i: open(logs[i], "rb").read().split(b"\n")[:-1]
    wait_until(lambda: all(len(lines(i)) >= 5 for i in logs) or any(c.poll() is not None for c in children), "each worker gets somewhere")
    kill(children)
    for c in children:
        c.kill()
    for c in children:
        c.wait()
    for i in logs:
        if lines(i) and i < 3:
            said["heard"][i] = int(lines(i)[-1])


def _kill_workers(children):
    assert [c.poll() for c in children] == [None] * len(children)
    for c in random.Random(1).sample(children, len(children)):
        c.kill()


def _sqlite(mode):
    for options in (dict(capacity="256K"), dict(migrate="always", capacity="1M"), dict(migrate_min="1M")):
        with open_to_all(**options) as m:
            path, said = m.path("db"), {"logs": m.twin, "heard": {}}
            _make(path, mode)
            with moved_about(m, "db", "db-wal") as rounds:
                for _ in range(ROUNDS):
                    _work(path, said, _kill_workers)
                    n = _check(path, said["heard"])
            m.umount()
            _check(os.path.join(m.source, "db"), said["heard"])
            say(f"sqlite {mode} {options}: {n} transactions, killed {5 * ROUNDS} processes; moved {rounds[0]} times meanwhile")
    return None


def sqlite_with_a_write_ahead_log_outlives_its_users_deaths(): return _sqlite("wal")


def sqlite_with_a_deleted_journal_outlives_its_users_deaths(): return _sqlite("delete")


def sqlite_with_a_truncated_journal_outlives_its_users_deaths(): return _sqlite("truncate")


def sqlite_with_a_persistent_journal_outlives_its_users_deaths(): return _sqlite("persist")


def sqlite_outlives_the_daemons_death():
    """What fsync(2) said is on the disk is there when the daemon is killed."""
    for mode in ("wal", "delete"):
        with open_to_all(capacity="256K") as m:
            path, said = m.path("db"), {"logs": m.twin, "heard": {}}
            _make(path, mode)
            for _ in range(ROUNDS):
                def kill(children):
                    m.daemon.kill(), m.daemon.wait()
                    run("umount", "-i", "-l", m.point)
                with moved_about(m, "db"):
                    _work(path, said, kill)
                _check(os.path.join(m.source, "db"), said["heard"])
                m.start()
                n = _check(path, said["heard"])
            m.umount()
            say(f"sqlite {mode}: {n} transactions, the daemon killed {ROUNDS} times")
    return None
