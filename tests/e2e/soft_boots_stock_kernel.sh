#!/bin/bash
# The software CPU boots Debian's stock cloud kernel to init on 1, 2 and 4 vCPUs, and twice the same under icount.
set -u -o pipefail
top=${VMD_TOP:-$(cd "$(dirname "$0")/../.." && pwd)}
build=${VMD_BUILD:-$top/build}
boot=$build/tests/tools/bootguest
[ -x "$boot" ] || { echo "skip: bootguest is not built"; exit 77; }
[ -x /usr/bin/busybox ] || { echo "skip: needs busybox-static"; exit 77; }
[ -e "$top/.lab/kernels/cloud/done" ] || "$top/tests/lab/kernels" "$top/.lab/kernels" cloud >/dev/null 2>&1 ||
	{ echo "skip: needs the cloud kernel (apt-get download)"; exit 77; }
kernel=$top/.lab/kernels/cloud/vmlinuz
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/root/bin" "$dir/root/dev" "$dir/root/proc"
cp /usr/bin/busybox "$dir/root/bin/"
cat >"$dir/root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
echo CPUS=$(/bin/busybox grep -c ^processor /proc/cpuinfo)
echo SUM=$(/bin/busybox head -c 300000 /bin/busybox | /bin/busybox sha256sum)
/bin/busybox poweroff -f
INIT
chmod +x "$dir/root/init"
(cd "$dir/root" && find . | cpio -o -H newc 2>/dev/null) >"$dir/initrd"
sum=$(head -c 300000 /usr/bin/busybox | sha256sum)

run() { # OUT ARG...
	local out=$1
	shift
	timeout 50 "$boot" --accel soft --kernel "$kernel" --initrd "$dir/initrd" --mem 512 --timeout 45 --stats \
		--cmdline "console=ttyS0 cryptomgr.notests=1" "$@" </dev/null 2>&1 | cat >"$out"
}
for n in 1 2 4; do
	run "$dir/out" --cpus $n || { tail -30 "$dir/out"; echo "$n vCPUs: did not boot"; exit 1; }
	grep -aq "CPUS=$n" "$dir/out" || { tail -30 "$dir/out"; echo "$n vCPUs: not all came up"; exit 1; }
	grep -aqF "SUM=${sum%% *}" "$dir/out" || { tail -30 "$dir/out"; echo "$n vCPUs: wrong sum"; exit 1; }
	! grep -aE 'BUG:|Oops|WARNING: CPU|segfault' "$dir/out" || { echo "$n vCPUs: the kernel complains"; exit 1; }
done
for n in 1 2; do
	# --hash parks the vCPU before its counters are read
	run "$dir/ic$n" --icount --hash || { tail -30 "$dir/ic$n"; echo "icount: did not boot"; exit 1; }
	# every counter of the CPU: one instruction, interrupt or TLB miss more or less shows. (The console is not compared: what a
	# slow reader does not take within the port's ring is dropped, as on a real line.)
	grep -aE '^bootguest: [a-z_]+ [0-9]+$' "$dir/ic$n" >"$dir/icf$n"
done
[ "$(wc -l <"$dir/icf1")" -ge 8 ] || { tail -30 "$dir/ic1"; echo "icount: no counters"; exit 1; }
cmp "$dir/icf1" "$dir/icf2" || { diff -a "$dir/icf1" "$dir/icf2" | head; echo "icount: two boots differ"; exit 1; }
grep -a "instructions" "$dir/icf1"
