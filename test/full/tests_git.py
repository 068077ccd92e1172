"""tests_git.py - git's own workload: clone, gc, fsck, and commits by several at once in work trees of one repository."""
import os, subprocess
from full import missing, open_to_all, run, say

COMMITS, WORK_TREES = 25, 4
NAMED = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t", "GIT_CONFIG_GLOBAL": "/dev/null",
         "GIT_CONFIG_NOSYSTEM": "1"}


def _git(where, *args, **more):
    return run("git", "-C", where, "-c", "safe.directory=*", "-c", "gc.auto=0", *args, env=os.environ | NAMED, **more)


def _make_history(repo):
    """What a clone of any project would be: a few hundred files in some dozens of commits, and some renamed."""
    os.mkdir(repo)
    _git(repo, "init", "-q", "-b", "main")
    for c in range(30):
        for i in range(12):
            d = os.path.join(repo, f"d{i}", f"e{c % 5}")
            os.makedirs(d, exist_ok=True)
            with open(os.path.join(d, f"f{c // 5}"), "a") as f:
                f.write(f"{c} {i}\n" * (50 + 13 * i))
        _git(repo, "add", "-A"), _git(repo, "commit", "-q", "-m", f"commit {c}")
    _git(repo, "mv", "d0", "moved"), _git(repo, "commit", "-q", "-m", "moved")


def _commit_at_once(repo):
    """In work trees, while the repository is packed again and again; how many commits there are."""
    script = f"""set -e
cd "$1"
for i in $(seq {COMMITS}); do
    echo "$1 $i" >> "d1/of $2"; mkdir -p "new $2"; echo "$i" > "new $2/$i"
    git add -A; git commit -q -m "$2 $i"
done
"""
    trees = [f"{repo}-tree{i}" for i in range(WORK_TREES)]
    for i, tree in enumerate(trees):
        _git(repo, "worktree", "add", "-q", "-b", f"side{i}", tree)
    env = os.environ | NAMED | {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "gc.auto", "GIT_CONFIG_VALUE_0": "0"}
    children = [subprocess.Popen(["bash", "-c", script, "-", tree, str(i)], env=env, stdin=subprocess.DEVNULL) for i, tree in enumerate(trees)]
    n = 0
    while any(c.poll() is None for c in children):
        _git(repo, "repack", "-q", "-a", "-k")  # -d races with git add, on any filesystem
        n += 1
    assert [c.returncode for c in children] == [0] * WORK_TREES
    for i, tree in enumerate(trees):
        assert _git(tree, "status", "--porcelain") == "" and int(_git(repo, "rev-list", "--count", f"main..side{i}")) == COMMITS
    return n


def git_clones_packs_and_commits():
    why_not = missing("git")
    if why_not:
        return why_not
    for options in (dict(capacity="256K"), dict(migrate="always", capacity="1M"), dict(migrate_min="1M", coherent=True)):
        with open_to_all(**options) as m:
            outside, repo = os.path.join(m.twin, "outside"), m.path("repo")
            _make_history(outside)
            run("git", "clone", "-q", "--no-local", outside, repo, env=os.environ | NAMED)
            assert _git(repo, "rev-parse", "HEAD^{tree}") == _git(outside, "rev-parse", "HEAD^{tree}")
            packed = _commit_at_once(repo)
            for i in range(WORK_TREES):
                _git(repo, "merge", "-q", "-s", "ours" if i else "recursive", f"side{i}", "-m", "merged")
            run("git", "-C", repo, "-c", "safe.directory=*", "gc", "-q", "--aggressive", "--prune=now", env=os.environ | NAMED)
            _git(repo, "fsck", "--full", "--strict")
            assert _git(repo, "status", "--porcelain") == ""
            run("git", "clone", "-q", "--no-local", repo, m.path("again"), env=os.environ | NAMED)
            run("diff", "-r", "-x", ".git", repo, m.path("again"))
            n = int(_git(repo, "rev-list", "--count", "--all"))
            m.umount()
            source = os.path.join(m.source, "repo")
            _git(source, "fsck", "--full", "--strict")
            assert n == int(_git(source, "rev-list", "--count", "--all"))
            say(f"git {options}: {n} commits by {WORK_TREES} at once, packed {packed} times meanwhile; fsck clean on the mount and the backing")
    return None
