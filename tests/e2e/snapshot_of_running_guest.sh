#!/usr/bin/env bash
# serial
# Snapshots of a guest that runs and writes, on the software CPU: a stock Debian kernel writes its disks through its console; taken live,
# what the guest wrote before is in the layer and what it writes after is not; the layer is exported while the guest goes on; removed
# live (pulled up, pushed down), killed daemons in between; put back after a stop, and the guest reads what it was.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq cpio qemu-img qemu-io nbdinfo python3
kernels=$TOP/.lab/kernels
[ -e "$kernels/cloud/done" ] || "$TOP/tests/lab/kernels" "$kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
check "initrd" "$TOP/tests/lab/initrd" "$T/initrd" "$TOP/tests/lab/init.guest" "$kernels/cloud" virtio_pci virtio_blk virtio_net ext4 button
start_vmd
V=$STATE/pools/default
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
must $VMCTL launch g --accel soft --memory 192M --kernel "$kernels/cloud/vmlinuz" --initrd "$T/initrd" --disk name=d,size=32M --disk name=e,size=16M \
	--cmdline 'console=ttyS0 cryptomgr.notests=1 quiet do=shell' --serial unix:g.sock
sock=$(find "$RUN" -name g.sock)
[ -S "$sock" ] || fail "the guest's port is a socket: $(find "$RUN")"
ask() { timeout 100 python3 "$TOP/tests/lib/ask.py" "$sock" "$1" >"$T/said" 2>&1 || fail "the guest: $1: $(cat "$T/said")"; }
# a byte, as printed by tr, in 64 KiB at 64K * N of a disk, through the guest's own driver
put() { ask "dd if=/dev/zero bs=64k count=1 2>/dev/null | tr '\\0' '$2' | dd of=/dev/$1 bs=64k seek=$3 conv=fsync,notrunc 2>/dev/null"; }
sees() { ask "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/$1 bs=64k skip=$3 count=1 2>/dev/null | tr -d '$2' | wc -c | grep -qx 0"; }
file_of() { echo "$V/$($VMCTL -o json disk info "$1" | jq -r '.file // (.name + "." + .format)')"; }
holds() { # DISK BYTE OFFSET: qemu-io's opinion
	qemu-io -r -U -c "read -P $2 $3 64k" "$(file_of "$1")" >"$T/out" 2>&1 && ! grep -q 'verification failed' "$T/out" || fail "$1 holds $2 at $3: $(cat "$T/out")"
}
put vda a 0
put vdb a 0
must $VMCTL snapshot create g one
[ "$($VMCTL -o json snapshot info g/one | jq -r '.live')" = true ] || fail "it was taken live"
put vda b 0
put vdb b 1
holds g-d.one 0x61 0
holds g-e.one 0 64k
must qemu-img check "$(file_of g-d.one)"
sees vda b 0
# the layer over NBD, while the guest writes
uri=$($VMCTL -q disk export g-d.one) || fail "a live guest's snapshot is exported: $uri"
must qemu-io -r -f raw -c 'read -P 0x61 0 64k' "$uri"
[ "$(nbdinfo --size "$uri")" = $((32 << 20)) ] || fail "nbdinfo reads it"
put vda c 4
$VMCTL snapshot rm g one >"$T/out" 2>&1 && fail "a snapshot that is read is not removed"
must $VMCTL disk unexport g-d.one
# three deep; the newest two go while it runs, also under a daemon that is killed
must $VMCTL snapshot create g two
put vda d 8
must $VMCTL snapshot create g three
put vda e 12
$VMCTL snapshot rm g one >"$T/out" 2>&1 && fail "the third below is not removed live"
grep -q 'newest' "$T/out" || fail "and that is said: $(cat "$T/out")"
must $VMCTL snapshot rm g two
for at in 'b 0' 'c 4' 'd 8' 'e 12'; do sees vda ${at% *} ${at#* }; done
holds g-d.three 0x64 512k
must $VMCTL snapshot rm g three
for at in 'b 0' 'c 4' 'd 8' 'e 12'; do sees vda ${at% *} ${at#* }; done
for n in 1 2 3; do
	$VMCTL --no-wait snapshot create g "k$n" >/dev/null 2>&1
	kill_vmd
	start_vmd
	idle() { [ "$($VMCTL -o json ops | jq '[.[] | select(.state == "running" or .state == "queued")] | length')" = 0 ]; }
	until_true 20 idle || fail "operations end: $($VMCTL -o json ops)"
	put vda "$n" 16
	sees vda "$n" 16
	[ "$($VMCTL -o json disk ls | jq '[.[] | select(.state != "ready")] | length')" = 0 ] || fail "disks are ready: $($VMCTL disk ls)"
done
for s in $($VMCTL -o json snapshot ls | jq -r '.[].name' | sort -r); do
	[ "$s" != one ] || continue
	$VMCTL --no-wait snapshot rm g "$s" >/dev/null 2>&1
	kill_vmd
	start_vmd
	until_true 20 idle || fail "a removal ends: $($VMCTL -o json ops)"
	sees vda 3 16
	sees vda b 0
done
[ "$($VMCTL -o json snapshot ls | jq length)" = 1 ] || fail "one is left: $($VMCTL -o json snapshot ls; $VMCTL -o json ops)"
# a guest whose process dies right after goes on with what it had
put vda z 20
must $VMCTL snapshot create g four
$VMCTL stop --force g >/dev/null 2>&1
sees_file() { holds g-d "$1" "$2"; }
sees_file 0x7a 1280k
sees_file 0x62 0
must $VMCTL snapshot restore g one
sees_file 0x61 0
sees_file 0 256k
must $VMCTL start g
sock=$(find "$RUN" -name g.sock)
sees vda a 0
sees vdb a 0
$VMCTL stop --force g >/dev/null 2>&1
must qemu-img check "$(file_of g-d)"
stop_vmd
exit 0
