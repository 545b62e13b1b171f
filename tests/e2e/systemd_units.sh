#!/usr/bin/env bash
# systemd: what make install lays down verifies; users and directories come from sysusers.d and tmpfiles.d; the daemon tells READY, STATUS,
# WATCHDOG and STOPPING; it takes the API socket from systemd and leaves it in place.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq curl python3 systemd-analyze systemd-socket-activate systemd-sysusers systemd-tmpfiles
cd "$TOP" || fail "cd"

make --no-print-directory -s BUILD="${BUILD#"$TOP"/}" DESTDIR="$T/root" install >"$T/out" 2>&1 || fail "make install: $(cat "$T/out")"
for f in usr/sbin/vmd usr/bin/vmctl usr/lib/vmd/vmd-guest usr/lib/vmd/vmd-image etc/vmd/vmd.conf usr/share/man/man8/vmd.8 usr/share/man/man1/vmctl.1; do
	[ -e "$T/root/$f" ] || fail "make install laid down $f"
done
units=$T/root/usr/lib/systemd/system
for u in vmd.service vmd.socket; do
	systemd-analyze verify --root="$T/root" --man=no "$u" >"$T/out" 2>&1
	grep -v 'sysinit.target\|basic.target\|sockets.target\|shutdown.target\|network.target\|multi-user.target\|system.slice\|-.slice\|-.mount\|Unit .* not found' "$T/out" >"$T/bad"
	[ ! -s "$T/bad" ] || fail "systemd-analyze verify $u: $(cat "$T/bad")"
done
systemd-analyze security --offline=true --root="$T/root" vmd.service >"$T/out" 2>&1 || fail "systemd-analyze security: $(cat "$T/out")"
grep -q 'Type=notify' "$units/vmd.service" && grep -q 'KillMode=process' "$units/vmd.service" && grep -q 'WatchdogSec' "$units/vmd.service" || fail "the unit is of the kind that guests survive"

printf 'root:x:0:0::/:/bin/sh\n' >"$T/root/etc/passwd"
printf 'root:x:0:\n' >"$T/root/etc/group"
systemd-sysusers --root="$T/root" "$T/root/usr/lib/sysusers.d/vmd.conf" >"$T/out" 2>&1 || fail "systemd-sysusers: $(cat "$T/out")"
for u in vmd-core vmd-api; do grep -q "^$u:" "$T/root/etc/passwd" || fail "sysusers makes user $u"; done
for g in vmd-admin vmd-operator vmd-viewer; do grep -q "^$g:" "$T/root/etc/group" || fail "sysusers makes group $g"; done
systemd-tmpfiles --root="$T/root" --create vmd.conf >"$T/out" 2>&1
[ -d "$T/root/run/vmd" ] || [ -d "$T/root/var/lib/vmd" ] || fail "tmpfiles makes its directories: $(cat "$T/out")"

# sd_notify: a datagram socket that notes what it hears, a line a message
cat >"$T/notify.py" <<'P'
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
out = open(sys.argv[2], "a", buffering=1)
while True:
    out.write(s.recv(4096).decode().replace("\n", " ") + "\n")
P
python3 "$T/notify.py" "$T/notify" "$T/heard" >/dev/null 2>&1 &
HELPERS=$!
until_true 5 test -S "$T/notify"
heard() { grep -q "$1" "$T/heard"; }
feeds() { [ "$(grep -c WATCHDOG=1 "$T/heard")" -ge "$1" ]; }
export NOTIFY_SOCKET=$T/notify WATCHDOG_USEC=600000
start_vmd
check "READY=1 is told" until_true 5 heard READY=1
check "STATUS is told" until_true 5 heard STATUS=
check "the watchdog is fed" until_true 5 feeds 3
# each role in turn is stuck: the feed stops, and goes on with the role
count() { grep -c WATCHDOG=1 "$T/heard"; }
stalled() { # nothing heard for twice the interval
	local a b
	a=$(count)
	read -r -t 1.2 <> <(:)
	b=$(count)
	[ "$a" = "$b" ]
}
for role in core api; do
	pid=$(pgrep -P "$VMD_PID" -f "role=$role") || fail "$role has a process"
	kill -STOP "$pid"
	until_true 10 stalled || { kill -CONT "$pid"; fail "a stuck $role goes unnoticed"; }
	kill -CONT "$pid"
	check "fed again once $role goes on" until_true 10 feeds $(($(count) + 2))
done
stop_vmd
check "STOPPING=1 is told" until_true 5 heard STOPPING=1
unset NOTIFY_SOCKET WATCHDOG_USEC

# socket activation: systemd listens, the daemon takes over, and leaves the socket where it was
rm -rf "$RUN" "$STATE"
mkdir -p "$RUN" "$STATE"
SOCK=$T/activated.sock
systemd-socket-activate --listen="$SOCK" "$BUILD/vmd" --foreground --state "$STATE" --run "$RUN" >>"$T/vmd.log" 2>&1 </dev/null &
VMD_PID=$!
until_true 5 test -S "$SOCK"
check "the first request starts it" curl -sf --retry 20 --retry-delay 1 --retry-all-errors --unix-socket "$SOCK" http://localhost/v1/healthz >/dev/null
[ ! -S "$RUN/api.sock" ] || fail "it made a socket of its own besides"
stop_vmd
[ -S "$SOCK" ] || fail "systemd's socket was removed"
exit 0
