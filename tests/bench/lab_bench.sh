#!/usr/bin/env bash
# lab_bench.sh - figures that need true KVM semantics: boots the lab and measures ours beside QEMU in it (tests/bench/lab/bench).
# ONLY=lab.boot, lab.vmm_memory, lab.blk or lab.net narrows.
set -u
cd "$VMD_TOP" || exit 1
case ${ONLY:-lab} in l | la | lab*) ;; *) exit 0 ;; esac
mkdir -p .lab/out
echo "${ONLY:-}" >.lab/out/bench-only
LAB_TIMEOUT=${LAB_TIMEOUT:-1700} tests/lab/run "${VMD_BUILD#"$VMD_TOP"/}" tests/bench/lab/bench 2>&1 | tee .lab/out/bench.log | grep '^{'
rc=${PIPESTATUS[0]}
rm -f .lab/out/bench-only
exit "$rc"
