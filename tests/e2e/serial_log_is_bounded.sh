#!/usr/bin/env bash
# A port of the kind log: vmctl logs shows it, it goes on over restarts, a guest that floods it takes 10 MiB of the host at the most, and
# it goes with the guest.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq gcc
start_vmd
# prints its 64 KiB of text for ever
cat >"$T/flood.S" <<'S'
	.globl _start
_start:	mov $0x3f8, %dx
	lea text(%rip), %rsi
	mov $65536, %ecx
	cld
	rep outsb
	jmp _start
text:	.rept 2048
	.ascii "the guest says this many times\r\n"
	.endr
S
gcc -nostdlib -static -no-pie -Wl,-Ttext=0x1000000 -Wl,--build-id=none -o "$T/flood" "$T/flood.S" || fail "no kernel could be made"
idle_kernel "$T/idle"

check "launch" quiet $VMCTL launch quiet --accel soft --memory 64M --kernel "$T/idle" --serial log
until_true 5 sh -c "$VMCTL logs quiet | grep -q idle" || fail "logs shows what the port said: $($VMCTL logs quiet)"
for i in 1 2 3 4 5; do
	check "restart $i" quiet $VMCTL restart quiet --force
	until_true 10 sh -c "[ \$($VMCTL logs quiet | grep -c idle) = $((i + 1)) ]" || fail "the log goes on over restart $i: $($VMCTL logs quiet)"
done
[ "$($VMCTL logs quiet --tail 1 | tr -d '\r')" = idle ] || fail "--tail 1 is the last line"
$VMCTL logs quiet --port process >"$T/out" 2>&1 || fail "the process has a log too: $(cat "$T/out")"
$VMCTL logs quiet --port serial7 >"$T/out" 2>&1
[ $? -eq 3 ] && grep -q 'serial7' "$T/out" || fail "a port without a log is named: $(cat "$T/out")"

check "launch a flood" quiet $VMCTL launch flood --accel soft --memory 64M --kernel "$T/flood" --serial log
log=$(find "$STATE/logs" -name "$($VMCTL -o json info flood | jq -r .uuid).serial0.log")
[ -f "$log" ] || fail "its log lies in the state directory"
size() { stat -c %s "$log"; }
grown() { [ "$(size)" -gt $((24 << 20)) ]; }
until_true 60 grown || fail "the flood flows: $(size) bytes"
kib=$(du -k "$log" | cut -f1)
[ "$kib" -le 10240 ] || fail "a flood of $(size) bytes takes $kib KiB of the host"
$VMCTL logs flood | head -c 4096 | tr -d '\r' | sed -n 2p | grep -qx 'the guest says this many times' || fail "what is left of the log is text from its first line on"
check "stop" quiet $VMCTL stop --force flood
check "start it again" quiet $VMCTL start flood
from=$(size)
more() { [ "$(size)" -gt $((from + (4 << 20))) ]; }
until_true 60 more || fail "the log goes on: $from, $(size)"
kib=$(du -k "$log" | cut -f1)
[ "$kib" -le 10240 ] || fail "after a restart it takes $kib KiB of the host"
check "stop" quiet $VMCTL stop --force flood
check "delete" quiet $VMCTL delete --now flood
gone() { [ ! -e "$log" ]; }
until_true 5 gone || fail "the log goes with the guest"
check "stop" quiet $VMCTL stop --force quiet
stop_vmd
exit 0
