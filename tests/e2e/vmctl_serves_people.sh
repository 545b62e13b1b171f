#!/usr/bin/env bash
# What a person at a terminal sees: groups of verbs, empty and full tables, top, metrics, a console with Ctrl-], watching a console.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq curl script
start_vmd
idle_kernel "$T/idle"

# a kernel that sends back what it is sent on the first serial port, in capitals: a & 0xdf
cat >"$T/echo.S" <<'S'
	.globl _start
_start:	mov $0x3fd, %dx
	in (%dx), %al
	test $1, %al
	jz _start
	mov $0x3f8, %dx
	in (%dx), %al
	and $0xdf, %al
	out %al, (%dx)
	jmp _start
S
gcc -nostdlib -static -no-pie -Wl,-Ttext=0x1000000 -Wl,--build-id=none -o "$T/echo" "$T/echo.S" || fail "no echo kernel could be made"

$VMCTL disk >"$T/out" 2>&1
[ $? -eq 2 ] && grep -q 'disk attach' "$T/out" || fail "a group alone lists its verbs: $(cat "$T/out")"
check "leases with no network" $VMCTL leases >"$T/out"
check "ls of nothing" $VMCTL ls >"$T/out"
head -1 "$T/out" | grep -q NAME || fail "an empty list has its head"
check "launch" $VMCTL launch e --accel soft --memory 64M --kernel "$T/echo" --serial null >/dev/null 2>&1

check "top, piped: once" timeout 10 $VMCTL top >"$T/out"
grep -q '^e  *running' "$T/out" || fail "top lists the guest: $(cat "$T/out")"
check "top as JSON" timeout 10 $VMCTL -o json top >"$T/out"
jq -e '.[0].pss > 0' "$T/out" >/dev/null || fail "top's JSON has numbers: $(cat "$T/out")"
(until_true 5 grep -q PSS "$T/tty"; echo) | timeout 20 script -qfec "$VMCTL top" "$T/tty" >/dev/null || fail "top on a terminal leaves on Enter"
$VMCTL info e >"$T/out"
grep -q '^counters' "$T/out" && fail "info is short"
$VMCTL info e --counters >"$T/out"
grep -q '^counters' "$T/out" || fail "info --counters is long"

# every line of /metrics is a comment or NAME{LABELS} NUMBER, and a name is described before it is used
check "metrics" $VMCTL metrics >"$T/out"
grep -vE '^# (HELP|TYPE) [a-z_:]+ .+$|^[a-z_:]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? -?[0-9.e+]+$' "$T/out" && fail "a line of /metrics is not Prometheus text"
grep -q '^vmd_guests{state="running"} 1$' "$T/out" || fail "/metrics counts guests: $(grep guests "$T/out")"
grep -q '^vmd_guest_starts_total 1$' "$T/out" || fail "/metrics counts starts"

# a console in a terminal: what is typed comes back from the guest, Ctrl-] leaves and says so
mkfifo "$T/keys"
timeout 30 script -qfec "$VMCTL console e" "$T/tty" <"$T/keys" >/dev/null &
pid=$!
exec 5>"$T/keys"
until_true 10 grep -q 'Ctrl-\] leaves' "$T/tty" || fail "the console says how to leave: $(cat "$T/tty")"
printf 'hello' >&5
until_true 10 grep -q HELLO "$T/tty" || fail "the guest answers: $(cat -v "$T/tty")"
# a watcher hears, and what it types goes nowhere
timeout 20 $VMCTL console e --read-only <<<'watcher' >"$T/watch" 2>&1 &
watcher=$!
until_true 10 grep -q HELLO "$T/watch" || fail "a watcher gets the scrollback: $(cat -v "$T/watch")"
printf 'again' >&5
until_true 10 grep -q AGAIN "$T/watch" || fail "a watcher hears what comes: $(cat -v "$T/watch")"
grep -q WATCHER "$T/tty" "$T/watch" && fail "a watcher cannot type"
kill "$watcher" 2>/dev/null
printf '\035' >&5
wait "$pid" || fail "Ctrl-] ends the console: $(cat -v "$T/tty")"
exec 5>&-
grep -q 'disconnected from e' "$T/tty" || fail "the console says goodbye: $(cat -v "$T/tty")"
check "stop" $VMCTL stop --force e >/dev/null 2>&1
check "delete" $VMCTL delete --now e >/dev/null 2>&1
# words of other tools, a verb without its group, slips of the keys
while IFS='|' read -r typed meant; do
	# shellcheck disable=SC2086
	$VMCTL $typed >"$T/out" 2>&1
	[ $? -eq 2 ] && grep -qF "$meant" "$T/out" || fail "vmctl $typed brings \"$meant\": $(cat "$T/out")"
done <<'END'
detach a|did you mean "disk detach"?
disk delete d|did you mean "disk rm"?
list|did you mean "ls"?
shutdown e|did you mean "stop"?
strat e|did you mean "start"?
snapshot revert e|did you mean "snapshot restore"?
disk clne d|did you mean "disk clone"?
disk frobnicate d|vmctl disk lists its verbs
help strat|did you mean "start"?
frobnicate|vmctl help
END
stop_vmd
exit 0
