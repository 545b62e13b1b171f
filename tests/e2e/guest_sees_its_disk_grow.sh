#!/usr/bin/env bash
# serial
# A stock Debian kernel on the software CPU is told when its disk grows: vmctl disk resize of a running guest, the kernel's own message,
# and the image as qemu-img sees it afterwards.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq cpio qemu-img
kernels=$TOP/.lab/kernels
[ -e "$kernels/cloud/done" ] || "$TOP/tests/lab/kernels" "$kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
check "initrd" "$TOP/tests/lab/initrd" "$T/initrd" "$TOP/tests/lab/init.guest" "$kernels/cloud" virtio_pci virtio_blk virtio_net ext4 button
start_vmd
check "launch" $VMCTL launch g --accel soft --memory 192M --kernel "$kernels/cloud/vmlinuz" --initrd "$T/initrd" --disk name=d,size=32M \
	--cmdline 'console=ttyS0 cryptomgr.notests=1 do=stay' --serial log >/dev/null 2>&1
said() { grep -aq "$1" "$STATE"/logs/*.serial0.log; }
until_true 60 said 'vda.*65536 512-byte logical blocks' || { tail -5 "$STATE"/logs/*.serial0.log; fail "the guest's driver finds 32 MiB within 60 s"; }
disk=$($VMCTL -o json info g | jq -r '.disks[0].disk')
check "resize" $VMCTL disk resize "$disk" 96M >"$T/out" 2>&1
until_true 20 said 'vda.*new size: 196608 512-byte logical blocks' || { tail -5 "$STATE"/logs/*.serial0.log; fail "the guest's kernel sees 96 MiB"; }
$VMCTL disk resize "$disk" 16M >"$T/out" 2>&1 && fail "a running guest's disk does not shrink"
check "stop" $VMCTL stop --force g >/dev/null 2>&1
size=$(qemu-img info --output=json "$(ls "$STATE"/pools/default/"${disk##*/}"*)" | jq '."virtual-size"')
[ "$size" = $((96 << 20)) ] || fail "the image is 96 MiB: $size"
stop_vmd
exit 0
