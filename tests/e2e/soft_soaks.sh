#!/usr/bin/env bash
# A stock kernel under load on the software CPU: stress-ng's cpu, vm, fork and matrix methods check their own results (--verify) on 2 vCPUs at
# once, for SOAK seconds (20). The same for hours: SOAK=3600 and more.
. "$(dirname "$0")/../lib/e2e.sh"
requires busybox cpio stress-ng ldd
boot=$BUILD/tests/tools/bootguest secs=${SOAK:-20}
[ -x "$boot" ] || skip "bootguest is not built"
"$TOP/tests/lab/kernels" "$TOP/.lab/kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
mkdir -p "$T"/root/{bin,dev,proc,sys,tmp}
cp "$(command -v busybox)" "$T/root/bin/"
# the program with the libraries that it is linked with, each where its loader looks
for f in "$(command -v stress-ng)" $(ldd "$(command -v stress-ng)" | grep -o '/[^ ]*'); do
	mkdir -p "$T/root/${f%/*}"
	cp -L "$f" "$T/root/$f" || fail "cp $f"
done
cat >"$T/root/init" <<INIT
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
cd /tmp
stress-ng --cpu 2 --vm 1 --vm-bytes 24M --fork 1 --matrix 1 --verify --metrics-brief -t $secs --temp-path /tmp && /bin/busybox echo SOAK-OK || /bin/busybox echo SOAK-BAD
/bin/busybox poweroff -f
INIT
chmod 755 "$T/root/init"
(cd "$T/root" && find . | cpio -o -H newc -R 0:0 --quiet) >"$T/initrd" || fail "cpio"
timeout $((secs * 4 + 120)) "$boot" --accel soft --cpus 2 --kernel "$TOP/.lab/kernels/cloud/vmlinuz" --initrd "$T/initrd" --mem 384 --timeout $((secs * 4 + 100)) \
	--cmdline "console=ttyS0 quiet cryptomgr.notests=1 PATH=/usr/bin:/bin" </dev/null >"$T/log" 2>&1
grep -aq SOAK-OK "$T/log" || { tail -n 30 "$T/log"; fail "stress-ng finds its own results right"; }
grep -aE 'BUG:|Oops|WARNING: CPU|segfault|general protection|invalid opcode' "$T/log" && fail "the kernel has nothing to say"
grep -a 'bogo ops\|stress-ng: metrc.* [0-9]' "$T/log" | tail -5
exit 0
