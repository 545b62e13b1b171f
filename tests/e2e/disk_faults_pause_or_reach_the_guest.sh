#!/usr/bin/env bash
# serial
# A file system that fills up under a guest's disk pauses the guest, with the event and the reason, and it goes on when there is room, with
# nothing lost; a disk whose medium fails gives the guest an I/O error, or pauses it where that was asked for; others do not notice.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
[ -n "${E2E_MNT:-}" ] || { [ "$(id -u)" -eq 0 ] || skip "needs root"; rm -rf "$T"; E2E_MNT=1 exec unshare -m -- "$0" "$@"; }
requires root jq cpio busybox qemu-img mkfs.ext4 losetup
kernels=$TOP/.lab/kernels
[ -e "$kernels/cloud/done" ] || "$TOP/tests/lab/kernels" "$kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
cat >"$T/init" <<'I'
#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
export PATH=/bin
/bin/busybox --install -s /bin
for m in $(cat /mod/order); do insmod "/mod/$m"; done
for w in $(cat /proc/cmdline); do case $w in do=*) do=${w#do=} ;; esac; done
echo "GUEST-UP"
case $do in
fill)
	i=0
	while [ $i -lt 12 ]; do
		yes "block $i" | dd of=/dev/vda bs=1M seek=$i count=1 iflag=fullblock conv=notrunc,fsync 2>/dev/null && echo "WROTE $i" || echo "LOST $i"
		i=$((i + 1))
	done
	echo 3 >/proc/sys/vm/drop_caches
	i=0
	while [ $i -lt 12 ]; do
		[ "$(dd if=/dev/vda bs=1M skip=$i count=1 2>/dev/null | head -n 1)" = "block $i" ] && echo "READ $i" || echo "BAD $i"
		i=$((i + 1))
	done
	echo GUEST-DONE
	;;
read)
	dd if=/dev/vda of=/dev/null bs=64k count=1 2>/dev/null && echo FIRST-READ
	while :; do dd if=/dev/vda of=/dev/null bs=64k skip=64 count=1 iflag=direct 2>/dev/null && echo SECOND-READ || echo SECOND-FAILED; sleep 1; done
	;;
esac
while :; do sleep 3600; done
I
check "initrd" "$TOP/tests/lab/initrd" "$T/initrd" "$T/init" "$kernels/cloud" virtio_pci virtio_blk
mkdir -p "$T/roots/small" "$T/roots/bad"
mount -t tmpfs -o size=8m tmpfs "$T/roots/small" || skip "needs mount"
truncate -s 48M "$T/medium"
mkfs.ext4 -q -F -O ^has_journal "$T/medium" || fail "mkfs.ext4"
loop=$(losetup --show -f "$T/medium" 2>/dev/null) || skip "needs loop devices"
trap 'umount -l "$T/roots/small" 2>/dev/null; umount -l "$T/roots/bad" 2>/dev/null; losetup -d "$loop" 2>/dev/null; cleanup' EXIT
mount "$loop" "$T/roots/bad" || skip "needs to mount ext4"
start_vmd --set "pool_roots=$T/roots"
check "pool create" quiet $VMCTL pool create small --path "$T/roots/small"
check "pool create" quiet $VMCTL pool create bad --path "$T/roots/bad"
boot() { # NAME DO FLAG...
	quiet $VMCTL launch "$1" --accel soft --memory 128M --kernel "$kernels/cloud/vmlinux" --initrd "$T/initrd" \
		--cmdline "console=ttyS0 quiet cryptomgr.notests=1 do=$2" --serial log "${@:3}"
}
log_of() { echo "$STATE/logs/$($VMCTL -o json info "$1" | jq -r .uuid).serial0.log"; }
says() { grep -aq -- "$2" "$(log_of "$1")"; }
state_is() { [ "$(state_of "$1")" = "$2" ]; }
event() { $VMCTL -o json events --follow=false --name "$1" 2>&1 | grep -q "$2"; }

# no room
check "launch filler" boot filler fill --disk pool=small,size=16M,format=qcow2
until_true 50 state_is filler paused || fail "it is paused: $(state_of filler) $(tail -3 "$(log_of filler)")"
$VMCTL -o json info filler | jq -e '.state_reason | test("space|full"; "i")' >/dev/null || fail "with the reason: $($VMCTL -o json info filler | jq .state_reason)"
event filler 'io-error\|space' || fail "and an event: $($VMCTL events --follow=false --name filler)"
says filler LOST && fail "the guest is told nothing"
# as long as there is none, resume ends where it was
$VMCTL resume filler >"$T/out" 2>&1
until_true 10 state_is filler paused || fail "paused again: $(state_of filler)"
mount -o remount,size=64m "$T/roots/small" || fail "remount"
check "resume" quiet $VMCTL resume filler
until_true 40 says filler GUEST-DONE || fail "it goes on when there is room: $(tail -3 "$(log_of filler)")"
for i in 0 5 11; do says filler "WROTE $i" && says filler "READ $i" || fail "block $i was written and reads back: $(cat "$(log_of filler)")"; done
says filler 'LOST\|BAD' && fail "nothing is lost: $(grep -a 'LOST\|BAD' "$(log_of filler)")"
check "stop" quiet $VMCTL stop --force filler
qemu-img check -q "$T/roots/small"/filler-*.qcow2 || fail "qemu-img finds the disk clean"

# a medium that fails
for how in report pause; do
	check "disk create" quiet $VMCTL disk create "d$how" --size 16M --format raw --pool bad
done
for f in "$T/roots/bad"/*.raw; do yes medium | dd of="$f" bs=1M count=16 conv=notrunc,fsync iflag=fullblock 2>/dev/null || fail "dd"; done
check "launch reader" boot reader read --disk bad/dreport,cache=none,on_error=report
check "launch waiter" boot waiter read --disk bad/dpause,cache=none,on_error=pause
for g in reader waiter; do until_true 50 says $g SECOND-READ || fail "$g reads its disk: $(tail -3 "$(log_of $g)")"; done
sync
truncate -s 1M "$T/medium" # what lies behind is gone
until_true 20 says reader SECOND-FAILED || fail "the guest sees the error: $(tail -3 "$(log_of reader)")"
state_is reader running || fail "and runs on: $(state_of reader)"
until_true 20 state_is waiter paused || fail "where that was asked for it is paused: $(state_of waiter)"
event waiter 'read failed: Input' || fail "with an event: $($VMCTL events --follow=false --name waiter)"
check "stop" quiet timeout 20 $VMCTL stop --force reader
check "stop" quiet timeout 20 $VMCTL stop --force waiter
check "the daemon answers" quiet $VMCTL ls
exit 0
