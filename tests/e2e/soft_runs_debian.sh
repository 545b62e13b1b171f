#!/usr/bin/env bash
# Debian on the software CPU, from a qcow2 disk with systemd: to a login prompt, and python3, perl, gcc, openssl, sqlite3 and
# stress-ng --verify in it; stock cloud and generic kernels, 1, 2 and 4 vCPUs. Minutes: VMD_TEST_LONG=1; ONLY_CASE=regex picks cases.
. "$(dirname "$0")/../lib/e2e.sh"
[ -n "${VMD_TEST_LONG:-}" ] || skip "takes minutes: needs VMD_TEST_LONG=1"
requires root mmdebstrap qemu-img busybox cpio
boot=$BUILD/tests/tools/bootguest lab=$TOP/.lab
[ -x "$boot" ] || skip "bootguest is not built"
"$TOP/tests/lab/kernels" "$lab/kernels" cloud generic >/dev/null 2>&1 || skip "needs Debian's kernels (apt-get download)"
NAME=debian-work INCLUDE=gcc,libc6-dev,perl,openssl,sqlite3,stress-ng,python3 SCRIPT=$TOP/tests/soft/debian/work "$TOP/tests/lab/debian-image" "$lab" \
	>/dev/null 2>&1 || skip "needs Debian's packages (mmdebstrap)"
for k in cloud generic; do
	"$TOP/tests/lab/initrd" "$T/initrd.$k" "$TOP/tests/lab/init.guest" "$lab/kernels/$k" virtio_pci virtio_blk crc32c_generic ext4 || fail "initrd"
done
passed=0 failed=0
# debian NAME KERNEL CPUS CMDLINE TEXT [bootguest option...]: boots until TEXT
debian() {
	local name=$1 kernel=$2 cpus=$3 cmdline=$4 text=$5 log
	shift 5
	[[ $name =~ ${ONLY_CASE:-.} ]] || return 0
	log=$T/${name// /_}.log
	cp --reflink=auto "$lab/debian-work.qcow2" "$T/disk.qcow2"
	SECONDS=0
	if timeout 1300 "$boot" --accel soft --kernel "$lab/kernels/$kernel/vmlinuz" --initrd "$T/initrd.$kernel" --mem 768 --cpus "$cpus" --timeout 1200 \
		--disk "$T/disk.qcow2,qcow2" --cmdline "console=ttyS0 do=root $cmdline" --expect "$text" --expect "can't access tty" "$@" </dev/null >"$log" 2>&1 && grep -aq "$text" "$log" &&
		! grep -aE 'BUG:|Oops|WARNING: CPU|segfault|general protection|invalid opcode|WORK-BAD|traps:' "$log"; then
		passed=$((passed + 1))
		echo "ok   $name ($SECONDS s)"
	else
		failed=$((failed + 1))
		echo "FAIL $name ($SECONDS s)"
		tail -n 20 "$log" | tr -d '\r' | sed 's/^/     | /'
	fi
}
for cpus in 1 2 4; do
	debian "login cloud $cpus" cloud $cpus "" "debian login:"
	debian "login generic $cpus" generic $cpus "" "debian login:"
done
for kernel in cloud generic; do
	debian "login $kernel minimal" $kernel 2 "quiet cryptomgr.notests=1" "debian login:"
done
for w in python perl gcc openssl sqlite stress; do
	debian "work $w" cloud 2 "quiet cryptomgr.notests=1 systemd.run=\"/usr/local/bin/work $w\"" "WORK-OK $w" --expect "WORK-BAD $w"
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
