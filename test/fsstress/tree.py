"""tree.py - all that is below a directory, to compare with another."""
import hashlib, os, stat

SHARED = ("top0", "top1", "top2", "everybodys")


def attributes(path):
    """What can be compared: the size of a directory is its filesystem's affair, its links everybody's, its times ours."""
    s = os.lstat(path)
    said = {"mode": oct(s.st_mode), "owner": (s.st_uid, s.st_gid)}
    if not stat.S_ISDIR(s.st_mode):
        said |= {"links": s.st_nlink, "size": s.st_size, "device": s.st_rdev}
    if stat.S_ISLNK(s.st_mode):
        said["target"] = os.readlink(path)
    if stat.S_ISREG(s.st_mode) or stat.S_ISDIR(s.st_mode):
        said["xattrs"] = {name: hashlib.sha1(os.getxattr(path, name)).hexdigest() for name in sorted(os.listxattr(path))}
    return said


def read_bytes(path):
    with open(path, "rb") as f:
        return hashlib.sha1(f.read()).hexdigest()


def may(call, path):
    """What it returned, or that an ordinary user may not look."""
    try:
        return call(path)
    except PermissionError:
        return None


def entries(top, everybodys=True):
    """path: attributes, with the bytes and all names of a file. No recursion: trees may be deep."""
    found, names_of, todo = {}, {}, [name for name in SHARED if everybodys or name != "everybodys"]
    while todo:
        name = todo.pop()
        path = os.path.join(top, name)
        s = may(os.lstat, path)
        found[name] = s and may(attributes, path)
        if found[name] and stat.S_ISDIR(s.st_mode):
            todo += [f"{name}/{below}" for below in may(os.listdir, path) or []]
        elif found[name]:
            names_of.setdefault(s.st_ino, []).append(name)
            found[name]["bytes"] = stat.S_ISREG(s.st_mode) and may(read_bytes, path)
    for names in names_of.values():
        for name in names:
            found[name]["names"] = sorted(names)
    return found


def differences(a, b):
    return [f"{name}: {a.get(name)} and {b.get(name)}" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
