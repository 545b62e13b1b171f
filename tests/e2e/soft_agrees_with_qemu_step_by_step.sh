#!/usr/bin/env bash
# Lockstep: a firmware of our own from the reset vector through real, protected and long mode, ring 3, faults and system calls, one instruction at
# a time on the software CPU and on QEMU's TCG (gdb stub): all registers agree after each. STEPS=n bounds it.
. "$(dirname "$0")/../lib/e2e.sh"
requires qemu-system-x86_64 gcc ld objcopy python3
[ -x "$BUILD/tests/tools/softsteps" ] || skip "softsteps is not built"
check "the firmware is assembled" gcc -c -o "$T/guest.o" "$TOP/tests/soft/lockstep/guest.S"
check "the firmware is linked" ld -Ttext=0xf0000 -o "$T/guest.elf" "$T/guest.o"
check "the image is made" objcopy -O binary -j .text "$T/guest.elf" "$T/guest.bin"
qemu-system-x86_64 -machine pc -accel tcg -cpu max -m 16 -nodefaults -display none -no-reboot -bios "$T/guest.bin" -S \
	-gdb "unix:$T/gdb,server=on,wait=off" &
HELPERS="${HELPERS:-} $!"
timeout 300 "$TOP/tests/soft/lockstep/compare" "$BUILD/tests/tools/softsteps" "$T/guest.bin" "${STEPS:-30000}" "$T/gdb" || fail "they differ"
