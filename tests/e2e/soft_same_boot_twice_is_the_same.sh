#!/usr/bin/env bash
# The software CPU under icount: the same boot twice ends bit-identical - CPUs, devices, all memory - with two vCPUs; another one does not.
. "$(dirname "$0")/../lib/e2e.sh"
requires busybox cpio
boot=$BUILD/tests/tools/bootguest
[ -x "$boot" ] || skip "bootguest is not built"
"$TOP/tests/lab/kernels" "$TOP/.lab/kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
mkdir -p "$T/root/bin" "$T/root/dev" "$T/root/proc"
cp "$(command -v busybox)" "$T/root/bin/"
cat >"$T/root/init" <<'I'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
(/bin/busybox head -c 3000 /dev/urandom | /bin/busybox md5sum) & # the kernel's own random numbers, on the other vCPU
/bin/busybox sha256sum /bin/busybox
wait
/bin/busybox cat /proc/uptime /proc/interrupts
/bin/busybox poweroff -f
I
chmod 755 "$T/root/init"
(cd "$T/root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet --reproducible) >"$T/initrd"
run() { # OUT WORD
	timeout 58 "$boot" --accel soft --icount --cpus 2 --hash --stats --kernel "$TOP/.lab/kernels/cloud/vmlinux" --initrd "$T/initrd" --mem 192 --timeout 55 \
		--cmdline "console=ttyS0 quiet cryptomgr.notests=1 $2" </dev/null >"$T/$1.out" 2>"$T/$1.err" || { tail "$T/$1.err"; fail "$1: no boot"; }
	grep -a "hash\|instructions" "$T/$1.err" >"$T/$1"
	[ "$(wc -l <"$T/$1")" -eq 3 ] || fail "$1: no hash"
}
run first word=a &
run second word=a
wait $! || fail "the first boot"
run other word=b
diff "$T/first" "$T/second" || fail "the same boot twice differs"
! diff -q "$T/first" "$T/other" >/dev/null || fail "another command line, the same hash"
cat "$T/first"
