#!/usr/bin/env bash
# A guest that was saved goes on at its next start where it stopped, once; a saved state survives the daemon, guards its disks, can be
# discarded, and a bad one is refused and stays. A stock kernel goes on counting too, where one is at hand.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq gcc
start_vmd
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
get() { $VMCTL query GET "/v1/$1"; }
files() { find "$STATE/pools/default" -name '*.state' -o -name '*.memory' | wc -l; }

# counts for ever, in a register, and prints eight digits and a newline each time
cat >"$T/count.S" <<'S'
	.globl _start
_start:	mov $0x3f8, %dx
	xor %r12d, %r12d
again:	inc %r12d
	mov $8, %ecx
	mov %r12d, %ebx
digit:	rol $4, %ebx
	mov %ebx, %eax
	and $15, %eax
	add $'0', %al
	cmp $'9', %al
	jbe put
	add $39, %al
put:	mov %al, %r8b
wait:	mov $0x3fd, %dx
	in %dx, %al
	test $0x20, %al
	jz wait
	mov $0x3f8, %dx
	mov %r8b, %al
	out %al, %dx
	dec %ecx
	jnz digit
	mov $'\n', %al
	out %al, %dx
	mov $3000000, %ecx
pause:	dec %ecx
	jnz pause
	jmp again
S
gcc -nostdlib -static -no-pie -Wl,-Ttext=0x1000000 -Wl,--build-id=none -o "$T/count" "$T/count.S" || fail "no counting kernel"
log() { cat "$STATE"/logs/"$(get guests/"$1" | jq -r .uuid)".serial0.log; }
last() { log c | grep -aE '^[0-9a-f]{8}' | tail -n 1 | cut -c1-8; }
beyond() { local n; n=$(last); [ -n "$n" ] && [ $((16#$n)) -gt "$1" ]; }
must $VMCTL disk create d --size 16M
must $VMCTL launch c --accel soft --memory 64M --kernel "$T/count" --serial log --disk d,iops=500
until_true 20 beyond 5 || fail "it counts: $(log c | tail -n 3)"
must $VMCTL save c
[ "$(state_of c)" = saved ] || fail "it is saved: $(get guests/c)"
[ "$(get guests/c | jq .pid)" = null ] || fail "its process is gone"
[ "$(files)" = 2 ] || fail "two files hold it: $(ls "$STATE"/pools/default)"
at=$((16#$(last)))

# saved: the definition and the disks stay
$VMCTL set c --cpus 2 >"$T/out" 2>&1 && fail "a saved guest's hardware stays"
grep -q 'vmctl discard c' "$T/out" || fail "the way out is named: $(cat "$T/out")"
$VMCTL disk resize d 32M >"$T/out" 2>&1 && fail "its disk stays"
grep -q 'discard c' "$T/out" || fail "the way out is named: $(cat "$T/out")"
$VMCTL disk detach d >"$T/out" 2>&1 && fail "its disk is not taken away"
must $VMCTL set c --label a=b

# over the daemon's death; a bad file is refused and what is saved stays
kill_vmd
start_vmd
[ "$(state_of c)" = saved ] || fail "it is still saved: $(get guests/c)"
state=$(echo "$STATE"/pools/default/*.state)
mv "$state" "$T/good"
head -c 3000 "$T/good" >"$state"
$VMCTL start c >"$T/out" 2>&1 && fail "a torn state is refused"
[ "$(state_of c)" = saved ] || fail "and it stays saved: $(get guests/c)"
[ "$((16#$(last)))" -eq $at ] || fail "nothing of it ran"
cat "$T/good" >"$state"
must $VMCTL start c
[ "$(state_of c)" = running ] || fail "it runs"
until_true 20 beyond $((at + 2)) || fail "it goes on counting from $at: $(log c | tail -n 3)"
log c | grep -aE '^[0-9a-f]{8}' | cut -c1-8 | uniq | sort -c -u || fail "it counts on without a gap in order: $(log c | tail -n 20)"
[ "$(log c | grep -ac '^00000001')" = 1 ] || fail "it began once"
until_true 10 eval '[ "$(files)" = 0 ]' || fail "what is used up is gone: $(ls "$STATE"/pools/default)"
[ "$(get guests/c | jq .saved)" = null ] || fail "and not on record"

# a paused one; discarded: the next start is a boot
must $VMCTL pause c
must $VMCTL save c
must $VMCTL --dry-run discard c
[ "$(state_of c)" = saved ] || fail "a dry run discards nothing"
must $VMCTL discard c
[ "$(state_of c)" = stopped ] || fail "discarded: stopped"
until_true 10 eval '[ "$(files)" = 0 ]' || fail "its files are gone"
$VMCTL discard c >"$T/out" 2>&1 && fail "there is nothing more to discard"
must $VMCTL start c
until_true 20 eval '[ "$(log c | grep -ac "^00000001")" = 2 ]' || fail "it began anew"

# saved, into the trash and out again, deleted for good
must $VMCTL save c
must $VMCTL delete c
$VMCTL disk resize d 32M >"$T/out" 2>&1 && fail "the disk of a saved guest in the trash stays as it is"
$VMCTL disk detach d >"$T/out" 2>&1 && fail "and with it"
grep -q 'hint: vmctl undelete' "$T/out" || fail "which says the way out: $(cat "$T/out")"
grep -q 'undelete c' "$T/out" || fail "the way out is named: $(cat "$T/out")"
must $VMCTL undelete c
[ "$(state_of c)" = saved ] || fail "it comes out of the trash as it went in: $(get guests/c)"
must $VMCTL delete --now c
until_true 10 eval '[ "$(files)" = 0 ]' || fail "deleted for good, with its files"

# no room for it: it runs on
stop_vmd
cp -a "$STATE/pools/default" "$T/pool"
mount -t tmpfs -o size=24M none "$STATE/pools/default" || fail "a small pool"
trap 'umount -l "$STATE/pools/default" 2>/dev/null; cleanup' EXIT
cp -a "$T/pool/." "$STATE/pools/default"
start_vmd
must $VMCTL launch f --accel soft --memory 64M --kernel "$T/count" --serial log
head -c 64M /dev/zero >"$STATE/pools/default/full" 2>/dev/null && fail "the pool is full"
$VMCTL save f >"$T/out" 2>&1 && fail "there is no room"
grep -qi 'no space' "$T/out" || fail "the reason is given: $(cat "$T/out")"
[ "$(state_of f)" = running ] || fail "it runs on: $(get guests/f)"
[ "$(files)" = 0 ] || until_true 10 eval '[ "$(files)" = 0 ]' || fail "no half file stays: $(ls "$STATE/pools/default")"
rm "$STATE/pools/default/full"
must $VMCTL save f
must $VMCTL delete --now f
stop_vmd
umount "$STATE/pools/default" || fail "nothing holds the pool"
trap cleanup EXIT
start_vmd

# the daemon dies in the middle: whatever is left, it is running or saved, and goes on
must $VMCTL launch c --accel soft --memory 256M --kernel "$T/count" --serial log
until_true 20 beyond 3 || fail "it counts"
for wait in 0.01 0.03 0.1; do
	$VMCTL --no-wait save c >"$T/out" 2>&1 || fail "save: $(cat "$T/out")"
	read -r -t $wait <> <(:)
	kill_vmd
	start_vmd
	over() { [ "$(get operations | jq '[.items[]|select(.state=="running" or .state=="queued")]|length')" = 0 ]; }
	until_true 20 over || fail "every operation ends: $(get operations | jq -c '.items[-1]')"
	case $(state_of c) in
	saved) must $VMCTL start c ;;
	running) ;;
	*) fail "running or saved: $(get guests/c)" ;;
	esac
	at=$((16#$(last)))
	until_true 20 beyond $((at + 1)) || fail "it goes on: $(log c | tail -n 3)"
	[ "$(log c | grep -ac '^00000001')" = 1 ] || fail "it never began anew"
done
must $VMCTL stop --force c
must $VMCTL delete --now c

# a stock kernel
kernel=$TOP/.lab/kernels/cloud/vmlinuz
if [ -e "$TOP/.lab/kernels/cloud/done" ] && [ -x /usr/bin/busybox ] && command -v cpio >/dev/null; then
	mkdir -p "$T/root/bin" "$T/root/dev" && cp /usr/bin/busybox "$T/root/bin/"
	printf '#!/bin/busybox sh\nn=0\nwhile :; do n=$((n + 1)); echo COUNT=$n.; /bin/busybox usleep 100000; done\n' >"$T/root/init"
	chmod +x "$T/root/init"
	(cd "$T/root" && find . | cpio -o -H newc 2>/dev/null) >"$T/initrd"
	must $VMCTL launch s --accel soft --memory 256M --kernel "$kernel" --initrd "$T/initrd" --serial log --cmdline 'console=ttyS0 cryptomgr.notests=1 quiet'
	count() { log s | grep -aoE 'COUNT=[0-9]+\.' | tail -n 1 | grep -oE '[0-9]+'; }
	counted() { [ "$(count || echo 0)" -gt "$1" ] 2>/dev/null; }
	until_true 40 counted 5 || fail "Linux counts: $(log s | tail -n 3)"
	must $VMCTL save s
	at=$(count)
	must $VMCTL start s
	until_true 20 counted $((at + 3)) || fail "Linux goes on from $at: $(log s | tail -n 5)"
	[ "$(log s | grep -acE 'COUNT=1\.')" = 1 ] || fail "Linux booted once"
	! log s | grep -aE 'BUG:|Oops|soft lockup|rcu.*stall' || fail "Linux has nothing to complain of"
	must $VMCTL stop --force s
fi
[ "$(files)" = 0 ] || fail "no saved file is left over"
stop_vmd
exit 0
