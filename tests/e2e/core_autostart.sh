#!/usr/bin/env bash
# autostart: once a boot of the host, in order; not again when only the daemon starts anew.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq
start_vmd
idle_kernel "$T/idle"
for g in a b c; do
	$VMCTL create $g --accel soft --memory 64M --kernel "$T/idle" --autostart >"$T/out" 2>&1 || fail "create $g: $(cat "$T/out")"
done
$VMCTL set c --no-autostart >"$T/out" 2>&1 || fail "set: $(cat "$T/out")"
running() { $VMCTL -o json ls | jq -r 'map(select(.state == "running").name) | join(" ")'; }
are() { [ "$(running)" = "$1" ]; }
[ -z "$(running)" ] || fail "defining starts nothing: $(running)"
kill_vmd
start_vmd
[ -z "$(running)" ] || fail "the daemon's own restart starts nothing: $(running)"
# the host boots: another boot id
stop_vmd
echo 00000000-0000-4000-8000-000000000000 >"$RUN/boot-id"
start_vmd
until_true 10 are 'a b' || fail "a boot starts those with autostart: $(running)"
$VMCTL stop --force a >"$T/out" 2>&1 || fail "stop: $(cat "$T/out")"
kill_vmd
start_vmd
until_true 10 are b || fail "what was stopped since the boot stays stopped: $(running)"
$VMCTL stop --force b >/dev/null 2>&1
stop_vmd
exit 0
