"""tests_pjdfstest.py - pjdfstest's checks of POSIX's file system calls, which are about other users too: root, and a mount for all.

No distribution of ours packages it: HMMFS_TEST_PJDFSTEST names a directory with its program `pjdfstest`, built, and its `tests`."""
import os, re
from full import missing, open_to_all, run, say


def _results(tests, directory):
    """(passed, {"file: number of the check"} failed)"""
    os.mkdir(directory)
    said = run("prove", "--merge", "--verbose", "--recurse", tests, ok=None, seconds=3000, cwd=directory)
    failed, name = set(), ""
    for line in said.splitlines():
        if line.startswith(tests):
            name = line.split(".t ")[0][len(tests) + 1:]
        bad = re.match(r"not ok (\d+)(?!.*# TODO)", line)
        if bad:
            failed.add(f"{name}: {bad.group(1)}")
    total = re.search(r"Files=\d+, Tests=(\d+)", said)
    assert total and int(total.group(1)) > 0, said[-3000:]
    return int(total.group(1)) - len(failed), failed


def pjdfstest_as_root():
    folder = os.environ.get("HMMFS_TEST_PJDFSTEST", "")
    if not folder:
        return "HMMFS_TEST_PJDFSTEST names no directory with pjdfstest, built, and its tests"
    if os.geteuid():
        return "needs root"
    why_not = missing("prove")
    if why_not:
        return why_not
    with open_to_all() as m:
        passed, failed = _results(os.path.join(os.path.abspath(folder), "tests"), m.path("work"))
        say(f"pjdfstest: {passed} of {passed + len(failed)} checks passed")
        if failed:
            _, on_the_backing = _results(os.path.join(os.path.abspath(folder), "tests"), os.path.join(m.twin, "work"))
            say(f"as on the backing: {sorted(failed & on_the_backing)}")
            assert not failed - on_the_backing, sorted(failed - on_the_backing)
        m.umount()
    return None
