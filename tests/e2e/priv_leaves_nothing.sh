#!/usr/bin/env bash
# Fifty starts and stops, and restarts of both roles: as many descriptors, control groups, sockets and processes as before; after the
# daemon's end no control group of its own.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
requires root gcc python3
idle_kernel "$T/idle"
start_vmd
# priv names its groups after its run directory: CRC-32C
inst=vmd-$(python3 - "$RUN" <<'P'
import sys
c = 0xffffffff
for b in sys.argv[1].encode():
    c ^= b
    for _ in range(8):
        c = (c >> 1) ^ (0x82f63b78 if c & 1 else 0)
print("%08x" % (c ^ 0xffffffff))
P
)
groups() { find /sys/fs/cgroup -type d -path "*/$inst*" 2>/dev/null | wc -l; }
fds() { find "/proc/$1/fd" -mindepth 1 | wc -l; }
count() {
	local r core api
	core=$(pgrep -P "$VMD_PID" -f role=core) api=$(pgrep -P "$VMD_PID" -f role=api)
	r="fds $(fds "$VMD_PID") $(fds "$core") $(fds "$api")"
	echo "$r groups $(groups) run $(find "$RUN/guests" -type s -o -type p | wc -l) children $(pgrep -c -P "$VMD_PID")"
}
one() { quiet $VMCTL start a && quiet $VMCTL stop --force a; }
check "create" quiet $VMCTL create a --accel soft --memory 64M --kernel "$T/idle" --serial log --console null --console pty
one && one || fail "start and stop"
before=$(count)
same() { [ "$(count)" = "$before" ]; }
for i in {1..50}; do check "start and stop $i" one; done
until_true 10 same || fail "as before after 50 starts and stops: before $before, after $(count)"
# roles that die and come back leave no descriptors in priv either (the first restart makes the loop's timer)
roles_die() {
	local role old
	for role in api core; do
		old=$(pgrep -P "$VMD_PID" -f "role=$role")
		kill -KILL "$old"
		back() { pgrep -P "$VMD_PID" -f "role=$role" >"$T/pids" && ! grep -qx "$old" "$T/pids" && $VMCTL query GET /v1/healthz; }
		until_true 20 back || fail "$role is back"
	done
}
roles_die
priv=$(fds "$VMD_PID")
roles_die
settled() { [ "$(fds "$VMD_PID")" -eq "$priv" ]; }
until_true 10 settled || fail "priv has as many descriptors as before its roles died: $priv, $(ls -l "/proc/$VMD_PID/fd")"
check "start and stop with new roles" one
stop_vmd
[ "$(groups)" -eq 0 ] || fail "control groups are left: $(find /sys/fs/cgroup -type d -path "*/$inst*")"
exit 0
