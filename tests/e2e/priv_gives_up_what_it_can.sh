#!/usr/bin/env bash
# The privileged role holds the capabilities of its systemd unit and no more, wears a filter of system calls, and hands both down; what it
# has no use for fails in it and in what it starts.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
requires root gcc jq python3
idle_kernel "$T/idle"
start_vmd
check "launch" quiet $VMCTL launch a --accel soft --memory 32M --kernel "$T/idle" --serial log
field() { sed -n "s/^$2:[[:space:]]*//p" "/proc/$1/status"; }
# the unit's list, as a mask
want=$(python3 - "$TOP/systemd/vmd.service" <<'P'
import re, sys
names = ("CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN "
         "NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
         "SYS_TTY_CONFIG MKNOD").split()
line = re.search(r"CapabilityBoundingSet=(.*)", open(sys.argv[1]).read()).group(1)
print("%016x" % sum(1 << names.index(c[4:]) for c in line.split()))
P
)
have=$(sed -n 's/^CapBnd:[[:space:]]*//p' /proc/self/status)
most=$(printf '%016x' $((0x$want & 0x$have)))
for set in CapBnd CapPrm CapEff; do
	[ "$(field "$VMD_PID" $set)" = "$most" ] || fail "$set is the unit's: $(field "$VMD_PID" $set), not $most"
done
[ "$(field "$VMD_PID" NoNewPrivs)" = 1 ] || fail "no new privileges"
[ "$(field "$VMD_PID" Seccomp)" = 2 ] || fail "a filter of system calls"
filters() { field "$1" Seccomp_filters; }
guest=$($VMCTL -o json info a | jq -r .pid) core=$(pgrep -P "$VMD_PID" -f role=core) api=$(pgrep -P "$VMD_PID" -f role=api)
for p in $core $api $guest; do
	[ "$(field "$p" CapEff)$(field "$p" CapBnd)" = 00000000000000000000000000000000 ] || fail "$p has capabilities: $(grep Cap "/proc/$p/status")"
	[ "$(filters "$p")" -gt "$(filters "$VMD_PID")" ] || fail "$p wears a filter more than priv: $(filters "$p"), $(filters "$VMD_PID")"
done
$VMCTL stop --force a >/dev/null 2>&1
exit 0
