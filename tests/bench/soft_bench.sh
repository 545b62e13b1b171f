#!/usr/bin/env bash
# soft_bench.sh - figures of the software CPU beside QEMU's TCG: boots, instructions a second, slowdown against native (tests/bench/soft/).
# ONLY=softcpu.boot, softcpu.mips or softcpu.slowdown.NAME narrows; RUNS=n rounds (5).
. "$VMD_TOP/tests/lib/e2e.sh"
case ${ONLY:-softcpu} in s | so | sof | softcpu*) ;; *) exit 0 ;; esac
requires qemu-system-x86_64 gcc cpio python3
"$VMD_TOP/tests/lab/kernels" "$VMD_TOP/.lab/kernels" cloud >&2 || skip "needs the cloud kernel (apt-get download)"
mkdir "$T/root"
gcc -D_GNU_SOURCE -O2 -static -o "$T/root/init" "$VMD_TOP/tests/bench/soft/work.c" -lm || fail "the work program does not build"
cp "$T/root/init" "$T/init"
(cd "$T/root" && echo init | cpio --quiet -o -H newc -R 0:0 --reproducible) >"$T/initrd" || fail "cpio"
"$VMD_TOP/tests/bench/soft/bench" "$VMD_TOP" "$VMD_BUILD" "$T"
