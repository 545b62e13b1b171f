#!/usr/bin/env bash
# Limits of a guest's disks are on record, reach the running guest and its next start; a guest's own reboot reboots it, or stops it.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq gcc
start_vmd
idle_kernel "$T/idle"
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
get() { $VMCTL query GET "/v1/$1"; }
must $VMCTL disk create d --size 16M
must $VMCTL disk create d2 --size 16M
must $VMCTL launch a --accel soft --memory 64M --kernel "$T/idle" --disk d,iops=100 --disk d2
limits() { get guests/a | jq -c '[.disks[]|[.iops,.bps]]'; }
[ "$(limits)" = '[[100,null],[null,null]]' ] || fail "a limit given at first: $(get guests/a)"
must $VMCTL limit a --disk disk1 --iops 50 --bps 1M
[ "$(limits)" = '[[100,null],[50,1048576]]' ] || fail "of one disk, while it runs: $(limits)"
must $VMCTL limit a --iops 0
[ "$(limits)" = '[[0,null],[0,1048576]]' ] || fail "of all: $(limits)"
must $VMCTL --dry-run limit a --iops 7
[ "$(limits)" = '[[0,null],[0,1048576]]' ] || fail "a dry run changes nothing: $(limits)"
$VMCTL limit a >"$T/out" 2>&1 && fail "nothing to limit"
grep -q 'vmctl limit a --iops' "$T/out" || fail "an example is given: $(cat "$T/out")"
$VMCTL limit a --disk nodisk --iops 1 >"$T/out" 2>&1 && fail "a disk that it has not"
grep -q nodisk "$T/out" || fail "it is named: $(cat "$T/out")"
$VMCTL limit a --iops -1 >"$T/out" 2>&1 && fail "below nothing"
must $VMCTL stop --force a
must $VMCTL limit a --bps 2M
must $VMCTL start a
[ "$(limits)" = '[[0,2097152],[0,2097152]]' ] || fail "kept over a stop: $(limits)"
must $VMCTL stop --force a

# prints once a boot, then pulls the reset line
cat >"$T/again.S" <<'S'
	.globl _start
_start:	mov $0x3f8, %dx
	mov $'B', %al
	out %al, %dx
	mov $20000000, %ecx
1:	dec %ecx
	jnz 1b
	mov $0xfe, %al
	out %al, $0x64
2:	hlt
	jmp 2b
S
gcc -nostdlib -static -no-pie -Wl,-Ttext=0x1000000 -Wl,--build-id=none -o "$T/again" "$T/again.S" || fail "no rebooting kernel"
boots() { cat "$STATE"/logs/"$(get guests/"$1" | jq -r .uuid)".serial0.log | tr -dc B | wc -c; }
must $VMCTL launch r --accel soft --memory 64M --kernel "$T/again"
until_true 20 eval '[ "$(boots r)" -ge 3 ]' || fail "it reboots: $(boots r)"
[ "$(state_of r)" = running ] || fail "in one process"
must $VMCTL stop --force r
must $VMCTL set r --on-reboot stop
before=$(boots r)
must $VMCTL start r
must $VMCTL wait r --state stopped --timeout 20s
[ "$(boots r)" = $((before + 1)) ] || fail "it stopped at its first reboot: $before, $(boots r)"
get guests/r | jq -r .state_reason | grep -q on_reboot || fail "and says why: $(get guests/r)"
# with --restart always each reboot is a new process
must $VMCTL set r --restart always
must $VMCTL start r
made_anew() { [ "$(boots r)" -ge $((before + 3)) ]; }
until_true 20 made_anew || fail "the policy starts it again: $(get guests/r)"
must $VMCTL set r --restart no
$VMCTL stop --force r >/dev/null 2>&1
stop_vmd
exit 0
