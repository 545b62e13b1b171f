#!/usr/bin/env bash
# The VMM of an idle guest on the software CPU gives back what the boot needed: at most 4 MiB private beyond the guest's RAM.
. "$(dirname "$0")/../lib/e2e.sh"
requires busybox cpio python3
boot=$BUILD/tests/tools/bootguest
[ -x "$boot" ] || skip "bootguest is not built"
"$TOP/tests/lab/kernels" "$TOP/.lab/kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
mkdir -p "$T/root/bin" "$T/root/dev"
cp "$(command -v busybox)" "$T/root/bin/"
printf '#!/bin/busybox sh\necho NOW-IDLE\nexec /bin/busybox sleep 100000\n' >"$T/root/init"
chmod 755 "$T/root/init"
(cd "$T/root" && find . | cpio -o -H newc -R 0:0 --quiet) >"$T/initrd"
"$boot" --accel soft --cpus 2 --kernel "$TOP/.lab/kernels/cloud/vmlinux" --initrd "$T/initrd" --mem 256 --timeout 55 \
	--cmdline "console=ttyS0 quiet cryptomgr.notests=1" </dev/null >"$T/out" 2>&1 &
pid=$!
HELPERS="${HELPERS:-} $pid"
private() { # KiB, guest RAM left out
	awk '/^[0-9a-f]+-[0-9a-f]+ / { ram = /memfd:ram/ } /^Private_Dirty/ && !ram { s += $2 } END { print s }' "/proc/$pid/smaps"
}
lean() { [ "$(private)" -le 4096 ]; }
until_true 40 grep -aq NOW-IDLE "$T/out" || { tail -5 "$T/out"; fail "the guest did not boot"; }
booted=$(private)
until_true 12 lean || fail "an idle guest's VMM holds $(private) KiB (after the boot $booted)"
[ "$booted" -gt 4096 ] || fail "$booted KiB after the boot: this test shows nothing"
kill -0 $pid || fail "the guest is gone"
echo "private: $booted KiB after the boot, $(private) KiB idle"
