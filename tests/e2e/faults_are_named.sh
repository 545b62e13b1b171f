#!/usr/bin/env bash
# serial
# What a person gets wrong, and what a host lacks: refused with the object, the cause and the way out, and nothing half made is left. A
# guest that faults, spins or runs out of disk is a recorded state, and stop always works.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
# a mount namespace of its own: full file systems, and /dev/kvm replaced
[ -n "${E2E_MNT:-}" ] || { [ "$(id -u)" -eq 0 ] || skip "needs root"; rm -rf "$T"; E2E_MNT=1 exec unshare -m -- "$0" "$@"; }
requires root gcc jq openssl
refused() { # WHAT TEXT COMMAND...
	local what=$1 text=$2
	shift 2
	"$@" >"$T/out" 2>&1 && fail "$what is refused"
	grep -qi -- "$text" "$T/out" || fail "$what: the refusal says ($text): $(cat "$T/out")"
}
soft() { $VMCTL launch "$1" --accel soft --memory 32M --serial log "${@:2}"; }
state_is() { [ "$(state_of "$1")" = "$2" ]; }
event() { $VMCTL -o json events --no-follow --name "$1" 2>/dev/null | grep -q "$2"; }
idle_kernel "$T/idle"
start_vmd

# what is asked for and cannot be
refused "a kernel that is missing" 'vmlinuz: No such file' soft a --kernel /nosuch/vmlinuz
refused "a kernel image that is missing" 'no image is named "nosuch"' soft a --kernel nosuch
echo "not a kernel" >"$T/text"
check "an image" quiet $VMCTL image import "$T/text" notakernel --kind kernel
check "create" quiet $VMCTL create a --accel soft --memory 32M --kernel notakernel
refused "a file that is no kernel" 'guest "a": kernel "notakernel" is not a kernel' $VMCTL start a
grep -q 'hint: a kernel is a bzImage' "$T/out" || fail "and what one is: $(cat "$T/out")"
state_is a failed || fail "the state is recorded: $(state_of a)"
$VMCTL -o json info a | jq -e '.state_reason | test("notakernel")' >/dev/null || fail "and its reason"
check "delete" quiet $VMCTL delete --now a
head -c 300 "$T/idle" >"$T/cut"
refused "a kernel cut short" 'outside the file' soft a --kernel "$T/cut"
check "delete" quiet $VMCTL delete --now a
refused "too little memory for the kernel" 'give the guest at least' $VMCTL launch a --accel soft --memory 16M --kernel "$T/idle"
check "delete" quiet $VMCTL delete --now a
refused "1M of memory" 'memory: .* out of range' $VMCTL create a --memory 1M --kernel "$T/idle"
check "create" quiet $VMCTL create a --accel soft --memory 32M --kernel "$T/idle"
refused "an accelerator that is unknown" 'not one of auto, kvm, soft' $VMCTL create b --accel sotf --kernel "$T/idle"
refused "virtual time where KVM runs the guest" 'not one of auto, kvm, soft' $VMCTL create b --accel kvm,icount --kernel "$T/idle"
check "virtual time on the software CPU" quiet $VMCTL create vt --accel soft,threads=1,icount --memory 32M --kernel "$T/idle"
check "start" quiet $VMCTL start vt
$VMCTL -o json info vt | jq -e '.accel == "soft,threads=1,icount" and .accel_used == "soft"' >/dev/null || fail "as it was asked: $($VMCTL info vt)"
check "delete" quiet $VMCTL delete --now --force vt
refused "huge pages that the memory is no multiple of" 'multiple of 2 MiB' $VMCTL launch hp --accel soft --memory 33M --memory-pages huge --kernel "$T/idle"
check "delete" quiet $VMCTL delete --now hp
check "huge pages, or the next best" quiet $VMCTL launch hp --accel soft --memory 32M --memory-pages huge --kernel "$T/idle"
check "delete" quiet $VMCTL delete --now --force hp
refused "a name that is taken" 'guest named "a" exists' $VMCTL create a --accel soft --kernel "$T/idle"
refused "an unknown flag" 'did you mean --accel' $VMCTL create b --acel soft --kernel "$T/idle"
refused "an unknown member" 'did you mean \\"memory\\"' $VMCTL query POST /v1/guests '{"name":"b","memorry":1}'
refused "an unknown member of a disk" 'disks\[0\].sizes' $VMCTL query POST /v1/guests '{"name":"b","disks":[{"sizes":1}]}'
refused "a disk in a format that it is not in" 'not a qcow2' $VMCTL image import "$T/idle" b --format qcow2
refused "a format that is unknown" 'not one of qcow2, raw' $VMCTL create b --kernel "$T/idle" --disk format=vmdk,size=1M
refused "a disk of 1000 bytes" 'multiple of 512' $VMCTL create b --kernel "$T/idle" --disk size=1000
refused "a disk that is not there" 'no disk is named' $VMCTL create b --kernel "$T/idle" --disk nosuch
refused "a network that is not there" 'no network is named' $VMCTL create b --kernel "$T/idle" --net nosuch
$VMCTL -o json ls | jq -e 'map(.name) == ["a"]' >/dev/null || fail "nothing half made is listed: $($VMCTL ls)"
$VMCTL -o json image ls | jq -e 'map(select(.name == "b")) == []' >/dev/null || fail "nor an image: $($VMCTL image ls)"
[ "$($VMCTL -o json disk ls | jq length)" = 0 ] || fail "nor a disk: $($VMCTL disk ls)"
[ -z "$(find "$STATE/pools" -name 'b*')" ] || fail "nor a file: $(ls "$STATE/pools/default")"
# a port of the host that is taken
check "launch" quiet soft p1 --kernel "$T/idle" --serial tcp:127.0.0.1:17799
refused "a TCP port that is taken" 'Address already in use' soft p2 --kernel "$T/idle" --serial tcp:127.0.0.1:17799
grep -q 'hint: ss -lnp' "$T/out" || fail "and the way out: $(cat "$T/out")"
state_is p1 running || fail "the other guest does not notice"
check "delete" quiet $VMCTL delete --now --force p1
check "delete" quiet $VMCTL delete --now p2

# /dev/kvm: missing, not to be opened, not what it should be
: >"$T/nokvm"
if [ -e /dev/kvm ]; then
	mount --bind "$T/nokvm" /dev/kvm || fail "mount --bind"
	stop_vmd
	start_vmd
	refused "kvm asked for, and it is not usable" '/dev/kvm' $VMCTL launch k --accel kvm --memory 32M --kernel "$T/idle" --serial log
	state_is k failed || fail "that is recorded: $(state_of k)"
	check "delete" quiet $VMCTL delete --now k
else
	refused "kvm asked for, and it is missing" '/dev/kvm' $VMCTL launch k --accel kvm --memory 32M --kernel "$T/idle" --serial log
	check "delete" quiet $VMCTL delete --now k
fi
check "auto takes the software CPU" quiet $VMCTL launch k --accel auto --memory 32M --kernel "$T/idle" --serial log
$VMCTL -o json info k | jq -e '.accel_used == "soft" and (.accel_reason | test("kvm"))' >/dev/null || fail "and says why: $($VMCTL -o json info k)"
check "stop" quiet $VMCTL stop --force k
[ ! -e /dev/kvm ] || umount /dev/kvm 2>/dev/null

# guests that misbehave
guest() { # NAME ASSEMBLER: a guest that runs it, in long mode
	printf '.globl _start\n_start: %s\n' "$2" >"$T/$1.S"
	gcc -nostdlib -static -no-pie -Wl,-Ttext=0x1000000 -Wl,--build-id=none -o "$T/$1.elf" "$T/$1.S" || fail "no kernel could be made"
	check "launch $1" quiet soft "$1" --kernel "$T/$1.elf" "${@:3}"
}
check "a neighbour" quiet soft neighbour --kernel "$T/idle"
guest triple 'xor %eax, %eax; push %rax; push %rax; lidt (%rsp); ud2'
until_true 20 state_is triple crashed || until_true 1 state_is triple stopped || fail "a triple fault is a recorded state: $(state_of triple)"
$VMCTL -o json info triple | jq -e '.state_reason | test("triple")' >/dev/null || fail "with its reason: $($VMCTL -o json info triple | jq .state_reason)"
guest spin 'mov $0xfee00020, %ebx; 1: mov (%rbx), %eax; jmp 1b'
guest spinport '1: mov $0x3fd, %dx; in %dx, %al; jmp 1b'
guest spinoff 'cli; 1: jmp 1b'
for g in spin spinport spinoff; do
	state_is $g running || fail "$g runs"
	check "pause $g" quiet timeout 10 $VMCTL pause $g
	check "resume $g" quiet timeout 10 $VMCTL resume $g
	check "stop $g" quiet timeout 20 $VMCTL stop --force $g
	state_is $g stopped || fail "$g is stopped: $(state_of $g)"
done
# code that is none, code where devices are, page tables of random bytes: the guest's end is recorded, or it spins and can be stopped
head -c 65536 /dev/zero | openssl enc -aes-128-ctr -K 00112233445566778899aabbccddeeff -iv 00000000000000000000000000000000 >"$T/random" || fail "openssl"
guest garbage ".incbin \"$T/random\""
guest intommio 'mov $0xfee00000, %eax; jmp *%rax'
guest intonothing 'mov $0xfff0000000, %rax; mov $0x83, %ebx; jmp *%rax'
guest wildtables "lea random(%rip), %rax; add \$4095, %rax; and \$-4096, %rax; mov %rax, %cr3; jmp .; .balign 4096; random: .incbin \"$T/random\""
guest wildroot 'mov $0x0ffffffffff000, %rax; mov %rax, %cr3; jmp .'
ended() { case $(state_of "$1") in crashed) ;; running) check "stop $1" quiet timeout 20 $VMCTL stop --force "$1" ;; *) return 1 ;; esac; }
for g in garbage intommio intonothing wildtables wildroot; do
	until_true 3 state_is $g crashed
	ended $g || fail "$g has a recorded end: $(state_of $g)"
	state_is $g stopped || $VMCTL -o json info $g | jq -e '.state_reason | length > 0' >/dev/null || fail "$g: with its reason: $($VMCTL -o json info $g)"
done
guest deaf 'cli; 1: jmp 1b'
check "a graceful stop becomes a forced one" quiet timeout 30 $VMCTL stop --timeout 1s deaf
state_is deaf stopped || fail "deaf is stopped: $(state_of deaf)"
# a stop that overtakes its start ends at rest, whichever came first
check "create" quiet $VMCTL create hasty --accel soft --memory 32M --kernel "$T/idle" --serial log
at_rest() { case $(state_of hasty) in stopped | failed | crashed | running) ;; *) return 1 ;; esac; }
for i in {1..12}; do
	$VMCTL --no-wait start hasty >/dev/null 2>&1 &
	$VMCTL --no-wait stop --force hasty >/dev/null 2>&1
	wait $!
	until_true 10 at_rest || fail "round $i: it stays $(state_of hasty)"
	$VMCTL stop --force hasty >/dev/null 2>&1
	until_true 10 state_is hasty stopped || until_true 1 state_is hasty failed || fail "round $i: it is stopped: $(state_of hasty)"
done
state_is neighbour running || fail "the neighbour does not notice"
exit 0
