#!/bin/bash
# test_posix_resident - what stat(2) and others' opens see of a file while it is on the device, and what a mount says of itself.
set -u
build=${HMMFS_TEST_BUILD:-}
hmmfs=${build:+$build/tools/}hmmfs
if [ "${HMMFS_TEST_DEVICE:-}" = cuda ] && [ -z "${HMMFS_TEST_REAL_CUDA:-}" ]; then
	export LD_LIBRARY_PATH=$build/test/simcuda HMMFS_SIMCUDA_GRANULARITY=65536
fi
scratch=$(mktemp -d)
source=$scratch/'a,source' point=$scratch/mount
mkdir "$source" "$point"
daemon=
clean() {
	fusermount3 -u -z "$point" 2>/dev/null
	[ -z "$daemon" ] || kill -KILL "$daemon" 2>/dev/null
	rm -rf "$scratch"
}
trap clean EXIT
failed=0
check() {	# NAME COMMAND...
	local name=$1
	shift
	if "$@"; then echo "ok   $name"; else echo "FAIL $name"; failed=1; fi
}
resident() { "$hmmfs" prefetch "$file" >/dev/null; [ "$(resident_bytes)" -gt 0 ]; }
resident_bytes() {
	"$hmmfs" status "$point" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["resident_bytes"])'
}

background_mount_says_its_device() {
	local said
	said=$("$hmmfs" mount "$source" "$point" -o \
		"device=${HMMFS_TEST_DEVICE:-host},capacity=4M,chunk=64K,bounce=8M,writeback_interval=0,migrate_min=0") &&
		[[ $said == "hmmfs: $source on $point: device "* ]]
}
check background_mount_of_a_source_with_a_comma_says_its_device background_mount_says_its_device
mountpoint -q "$point" || exit 1
daemon=$("$hmmfs" status "$point" --json | python3 -c 'import json, sys; print(json.load(sys.stdin).get("daemon", ""))')
[ -n "$daemon" ] || daemon=$(pgrep -f "hmmfs mount $source $point")
file=$point/file
head -c 100000 /dev/urandom >"$file"

our_own_changes_keep_chunks() {
	resident && chmod 600 "$file" && ln "$file" "$point/link" && setfattr -n user.a -v 1 "$file" &&
		mv "$point/link" "$point/moved" && rm "$point/moved" && touch -d @1000 "$file" && cat "$file" >/dev/null &&
		[ "$(resident_bytes)" -gt 0 ]
}
check own_changes_of_attributes_keep_chunks our_own_changes_keep_chunks

others_changes_drop_chunks() {
	resident && sleep 0.02 && printf x >>"$source/file" && cat "$file" >/dev/null && [ "$(resident_bytes)" = 0 ]
}
check others_changes_of_the_backing_drop_chunks others_changes_drop_chunks

write_moves_mtime() {
	touch -d @1000 "$file" && resident && python3 - "$file" <<'PYTHON'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b"x", 0)
sys.exit(os.fstat(fd).st_mtime < 2000)
PYTHON
}
check write_to_a_resident_file_moves_its_mtime write_moves_mtime

set_times_stay() {
	resident && python3 - "$file" <<'PYTHON'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b"y" * 100, 0)
os.utime(fd, (10, 20))
PYTHON
	[ "$(stat -c %Y "$file")" = 20 ] && [ "$(stat -c %Y "$source/file")" = 20 ]
}
check times_set_after_a_write_stay_after_close set_times_stay

effective_policy() {
	[ "$(getfattr --only-values -n user.hmmfs.migrate "$file")" = auto ] && ! getfattr "$file" | grep -q hmmfs
}
check policy_in_force_is_told_and_not_listed effective_policy

# Forgetting a file while its prefetch is under way must not wait for the engine on the engine's own thread.
forgotten_during_prefetch() {
	mkdir "$point/many" && timeout 60 python3 - "$point/many" <<'PYTHON'
import os, sys
for round in range(5):
    for i in range(200):
        name = f"{sys.argv[1]}/{i}"
        with open(name, "wb") as f:
            f.write(b"x" * 70000)
        os.setxattr(name, "user.hmmfs.migrate", b"always")
        open(name, "rb").close()
        if i % 3 == 0:
            os.setxattr(name, "user.hmmfs.migrate", b"never")
        os.unlink(name)
PYTHON
	timeout 20 "$hmmfs" status "$point" >/dev/null
}
check files_forgotten_during_their_prefetch_do_not_hang_the_mount forgotten_during_prefetch

stray_signal() {
	kill -USR2 "$daemon" && sleep 0.2 && kill -TERM "$daemon" || return 1
	for _ in $(seq 100); do
		mountpoint -q "$point" || return 0
		sleep 0.1
	done
	return 1
}
check stray_sigusr2_does_not_stop_sigterm stray_signal
exit "$failed"
