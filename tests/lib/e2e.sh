# shellcheck shell=bash
# e2e.sh - helpers of the end-to-end tests. `. "$(dirname "$0")/../lib/e2e.sh"` first; then
#	requires kvm root qemu-img ...	skip (77) where one is missing
#	start_vmd [vmd option...]	a private daemon; $VMCTL talks to it; $SOCK is its socket, $STATE and $RUN its folders
#	stop_vmd, kill_vmd [SIGNAL]	orderly, or not; start_vmd again takes up the same state
#	fail TEXT, check TEXT COMMAND	a failure names what was expected
#	HELPERS="$HELPERS $!"		ends with the script
#	until_true SECONDS COMMAND	wait for an event that only a command can see, with a deadline
# Everything started ends with the script, by pid; everything written lies in $T, which goes too.
set -u
TOP=${VMD_TOP:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
BUILD=${VMD_BUILD:-$TOP/build}
T=$(mktemp -d "${TMPDIR:-/tmp}/vmd-test.XXXXXX")
chmod 711 "$T" # roles and dnsmasq have uids of their own
STATE=$T/state RUN=$T/run SOCK=$T/run/api.sock VMD_PID=
VMCTL="$BUILD/vmctl --socket $SOCK"
export NO_COLOR=1

skip() { echo "skipped: $*"; exit 77; }
fail() {
	echo "FAILED: $*" >&2
	[ ! -f "$T/vmd.log" ] || { echo "--- end of the daemon's log" >&2; tail -n 20 "$T/vmd.log" >&2; }
	exit 1
}
check() {
	local what=$1
	shift
	"$@" || fail "$what (exit $? of: $*)"
}
# quiet COMMAND...: its output goes to $T/out, and is shown where it fails; its exit status
quiet() { "$@" >"$T/out" 2>&1 || { local rc=$?; cat "$T/out" >&2; return $rc; }; }
until_true() {
	local end=$((SECONDS + $1))
	shift
	while ! "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		read -r -t 0.05 <> <(:) || true
	done
}
requires() {
	local r
	for r; do
		case $r in
		root) [ "$(id -u)" -eq 0 ] || skip "needs root" ;;
		kvm) [ -w /dev/kvm ] || skip "needs /dev/kvm" ;;
		lab) [ -n "${IN_LAB:-}" ] || skip "needs the lab (make lab)" ;;
		netns) unshare -n true 2>/dev/null || skip "needs network namespaces" ;;
		*) command -v "$r" >/dev/null || skip "needs $r" ;;
		esac
	done
}
# in_own_netns - run the rest of the script in a network and a mount namespace of its own (call before anything else)
in_own_netns() {
	[ -z "${E2E_NETNS:-}" ] || return 0
	rm -rf "$T"
	E2E_NETNS=1 exec unshare -n -m -- bash -c 'ip link set lo up; exec "$0" "$@"' "$0" "$@"
}
start_vmd() {
	mkdir -p "$STATE" "$RUN"
	"$BUILD/vmd" --foreground --state "$STATE" --run "$RUN" "$@" >>"$T/vmd.log" 2>&1 </dev/null &
	VMD_PID=$!
	until_true 20 $VMCTL query GET /v1/healthz || fail "the daemon did not answer within 20 s"
}
stop_vmd() {
	[ -n "$VMD_PID" ] || return 0
	kill -TERM "$VMD_PID" 2>/dev/null
	wait "$VMD_PID" 2>/dev/null
	VMD_PID=
}
kill_vmd() {
	kill -"${1:-KILL}" "$VMD_PID" 2>/dev/null
	wait "$VMD_PID" 2>/dev/null
	VMD_PID=
}
# guests outlive the daemon, so a test ends its own: by the pids that hold this run directory's sockets
end_guests() {
	local s pid
	for s in "$RUN"/guests/*.sock; do
		[ -S "$s" ] || continue
		for pid in $(ss -xlpH src "$s" 2>/dev/null | grep -o 'pid=[0-9]*' | cut -d= -f2); do kill -KILL "$pid" 2>/dev/null; done
	done
}
mounts_below() { awk -v t="$1/" 'index($5, t) == 1 { print $5 }' /proc/self/mountinfo | sort -r; }
# remove_tree DIR - what a test mounted there is let go first: nothing is ever removed through a mount
remove_tree() {
	local m
	for m in $(mounts_below "$1"); do umount -l "$m"; done
	[ -z "$(mounts_below "$1")" ] || { echo "kept, for something is mounted in it: $1" >&2; return 1; }
	rm -rf --one-file-system "$1"
}
cleanup() {
	local rc=$? s
	trap - EXIT
	stop_vmd
	end_guests
	# networks outlive the daemon as well: their DHCP servers
	for s in "$STATE"/dhcp/*/pid; do [ ! -f "$s" ] || kill "$(cat "$s")" 2>/dev/null; done
	for s in ${HELPERS:-}; do kill "$s" 2>/dev/null; done
	[ -z "${KEEP:-}" ] || { echo "kept: $T"; exit $rc; }
	remove_tree "$T"
	exit $rc
}
trap cleanup EXIT
trap 'exit 143' TERM INT
# idle_kernel FILE - the smallest guest there is: a 64-bit ELF that prints "idle" on the first serial port and halts for ever
idle_kernel() {
	requires gcc
	cat >"$T/idle.S" <<'S'
	.globl _start
_start:	mov $0x3f8, %dx
	lea text(%rip), %rsi
	mov $6, %ecx
	rep outsb
1:	cli
	hlt
	jmp 1b
text:	.ascii "idle\r\n"
S
	gcc -nostdlib -static -no-pie -Wl,-Ttext=0x1000000 -Wl,--build-id=none -o "$1" "$T/idle.S" || fail "no idle kernel could be made"
}
state_of() { $VMCTL -o json info "$1" | jq -r .state; }
