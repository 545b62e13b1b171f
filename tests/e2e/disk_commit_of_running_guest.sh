#!/usr/bin/env bash
# serial
# A running guest's disk is committed into what it is built on, and the two become one, while the guest goes on writing: under a daemon
# that is killed, and with the guest's process killed at some moment of it. Nothing that was synced is lost, and qemu-img agrees.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq cpio qemu-img qemu-io python3
kernels=$TOP/.lab/kernels
[ -e "$kernels/cloud/done" ] || "$TOP/tests/lab/kernels" "$kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
check "initrd" "$TOP/tests/lab/initrd" "$T/initrd" "$TOP/tests/lab/init.guest" "$kernels/cloud" virtio_pci virtio_blk virtio_net ext4 button
start_vmd
V=$STATE/pools/default
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
ask() { timeout 100 python3 "$TOP/tests/lib/ask.py" "$sock" "$1" >"$T/said" 2>&1 || fail "the guest: $1: $(cat "$T/said")"; }
put() { ask "dd if=/dev/zero bs=64k count=1 2>/dev/null | tr '\\0' '$2' | dd of=/dev/$1 bs=64k seek=$3 conv=fsync,notrunc 2>/dev/null"; }
sees() { ask "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/$1 bs=64k skip=$3 count=1 2>/dev/null | tr -d '$2' | wc -c | grep -qx 0"; }
file_of() { echo "$V/$($VMCTL -o json disk info "$1" | jq -r '.file // (.name + "." + .format)')"; }
holds() { # DISK BYTE OFFSET
	qemu-io -r -U -c "read -P $2 $3 64k" "$(file_of "$1")" >"$T/out" 2>&1 && ! grep -q 'verification failed' "$T/out" || fail "$1 holds $2 at $3: $(cat "$T/out")"
}
idle() { [ "$($VMCTL -o json ops | jq '[.[] | select(.state == "running" or .state == "queued")] | length')" = 0 ]; }
boot() {
	must $VMCTL launch g --accel soft --memory 192M --kernel "$kernels/cloud/vmlinuz" --initrd "$T/initrd" --disk top \
		--cmdline 'console=ttyS0 cryptomgr.notests=1 quiet do=shell' --serial unix:g.sock
	sock=$(find "$RUN" -name g.sock)
}
for round in plain daemon guest; do
	must $VMCTL disk create root --size 256M
	must qemu-io -c 'write -P 1 0 64k' -c 'write -P 1 8M 1M' "$(file_of root)"
	must $VMCTL disk create base --backing root
	must qemu-io -c 'write -P 2 1M 64k' "$(file_of base)"
	must $VMCTL disk create top --backing base
	must qemu-io -c 'write -P 3 2M 64k' -c 'write -P 4 32M 160M' "$(file_of top)"
	boot
	put vda a 80
	ask '( (i=0; while :; do i=$((i+1)); dd if=/dev/urandom of=/dev/vda bs=4k seek=$((6400 + i % 400)) count=1 conv=notrunc 2>/dev/null; done) >/dev/null 2>&1 &)'
	old=$(file_of top) into=$(file_of base)
	case $round in
	plain)
		# who would resize it meanwhile is told to wait, or was first, or comes after
		$VMCTL --no-wait disk commit top >"$T/out" 2>&1 || fail "commit: $(cat "$T/out")"
		$VMCTL disk resize top 320M >"$T/out" 2>&1 || grep -q 'under way' "$T/out" || fail "a resize waits: $(cat "$T/out")"
		until_true 30 idle || fail "it ends: $($VMCTL -o json ops)"
		;;
	daemon)
		$VMCTL --no-wait disk commit top >"$T/out" 2>&1 || fail "commit: $(cat "$T/out")"
		kill_vmd
		start_vmd
		until_true 30 idle || fail "it ends: $($VMCTL -o json ops)"
		;;
	guest)
		put vda b 96
		$VMCTL --no-wait disk commit top >"$T/out" 2>&1 || fail "commit: $(cat "$T/out")"
		kill -KILL "$($VMCTL -o json info g | jq .pid)"
		until_true 30 idle || fail "it ends: $($VMCTL -o json ops)"
		[ "$($VMCTL -o json disk ls | jq '[.[] | select(.state != "ready")] | length')" = 0 ] || fail "disks are ready: $($VMCTL disk ls)"
		;;
	esac
	if [ $round != guest ]; then
		[ "$($VMCTL -o json ops | jq -r '[.[] | select(.verb == "disk-commit-live")][-1].state')" = succeeded ] || fail "$round: it is done: $($VMCTL -o json ops)"
		[ "$(file_of top)" = "$into" ] || fail "$round: the disk goes on in its parent's file: $(file_of top)"
		gone() { [ ! -e "$old" ]; }
		until_true 5 gone || fail "$round: its own file goes"
		[ "$($VMCTL -o json disk info top | jq -r .backing)" = default/root ] || fail "$round: it is built on what its parent was built on"
		put vda b 96
		sees vda a 80
		must $VMCTL stop --force g
	fi
	for at in '0x61 5M' '0x62 6M' '1 0' '2 1M' '3 2M' '4 100M' '1 8M'; do holds top ${at% *} ${at#* }; done
	must $VMCTL disk check top
	if [ $round = guest ]; then # and once more, with nobody disturbing
		must $VMCTL start g
		sock=$(find "$RUN" -name g.sock)
		sees vda b 96
		[ "$(file_of top)" = "$into" ] || must $VMCTL disk commit top
		must $VMCTL stop --force g
	fi
	must qemu-img check "$(file_of top)"
	must $VMCTL delete --now g
	for d in $($VMCTL -q disk ls); do $VMCTL disk rm "$d" >/dev/null 2>&1; done
	for d in $($VMCTL -q disk ls); do must $VMCTL disk rm "$d"; done
done
# refused by name: an image does not change, nor does what others are built on
must $VMCTL disk create base --size 16M
must $VMCTL disk create top --backing base
must $VMCTL disk create other --backing base
boot
$VMCTL disk commit top >"$T/out" 2>&1 && fail "what another disk is built on is not written"
grep -q 'default/other' "$T/out" || fail "and that one is named: $(cat "$T/out")"
must $VMCTL stop --force g
stop_vmd
exit 0
