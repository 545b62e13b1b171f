#!/usr/bin/env bash
# serial
# Backups to NBD servers of other makers: full (over old content), incremental in place, of a disk at rest and of one whose guest writes;
# over TCP and a unix socket. A server that refuses, is too small, is read-only or dies: that is said, the bitmap loses nothing.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq cpio qemu-img qemu-io qemu-nbd nbdkit python3
in_own_netns "$@"
kernels=$TOP/.lab/kernels
[ -e "$kernels/cloud/done" ] || "$TOP/tests/lab/kernels" "$kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
check "initrd" "$TOP/tests/lab/initrd" "$T/initrd" "$TOP/tests/lab/init.guest" "$kernels/cloud" virtio_pci virtio_blk virtio_net ext4 button
mkdir -p "$T/socks"
start_vmd --set "serial_roots=$T/socks"
V=$STATE/pools/default
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
refused() { # TEXT COMMAND...
	local text=$1
	shift
	"$@" >"$T/out" 2>&1 && fail "refused: $*"
	grep -q -- "$text" "$T/out" || fail "\"$text\" in the answer to $*: $(cat "$T/out")"
}
same() { quiet qemu-img compare -U "$1" "$2" || fail "$3: they differ"; }
listens() { [ -S "$1" ] || ss -ltnH "sport = :$1" | grep -q .; }
nbdkit_on() { # [nbdkit option...] memory SIZE [parameter...]; ends with the script
	nbdkit -f -i 127.0.0.1 -p 10809 "$@" >"$T/nbdkit.log" 2>&1 &
	far=$!
	HELPERS="${HELPERS:-} $far"
	until_true 10 listens 10809 || fail "nbdkit: $(cat "$T/nbdkit.log")"
}
nbdkit_off() { kill -KILL $far; wait $far 2>/dev/null; until_true 10 eval '! listens 10809'; }
F=nbd://127.0.0.1/far

must $VMCTL disk create d --size 32M
must qemu-io -c 'write -P 1 0 4M' -c 'write -P 2 20M 1M' "$V/d.qcow2"
# what cannot be
refused 'Connection refused' $VMCTL disk backup d "$F"
for uri in nbd: nbd://: nbd://host.example/x 'nbd+unix:///x' 'nbd+unix:///x?socket=rel' http://127.0.0.1/x nbds://127.0.0.1/x 'nbd://127.0.0.1/%0a' "nbd://127.0.0.1:99999/x"; do
	refused 'vmctl: ' $VMCTL disk backup d "$uri"
done
refused 'serial_roots' $VMCTL disk backup d 'nbd+unix:///x?socket=/etc/x.sock'
nbdkit_on memory 16M
refused 'smaller' $VMCTL disk backup d "$F"
nbdkit_off
nbdkit_on -r memory 32M
refused 'read-only' $VMCTL disk backup d "$F"
nbdkit_off
[ "$($VMCTL -o json disk info d | jq -r .state)" = ready ] || fail "the disk is ready again"

# full, over what another disk left there; then what changed, in place
nbdkit_on memory 32M
must qemu-io -f raw -c 'write -P 9 0 32M' "$F"
must $VMCTL disk backup d "$F" --bitmap day
same "$V/d.qcow2" "$F" "a full backup"
must qemu-io -c 'write -P 3 1M 64k' -c 'write -z 20M 64k' "$V/d.qcow2"
refused 'did not go to' $VMCTL disk backup d nbd://127.0.0.1:10809/far --bitmap day --incremental
must $VMCTL disk backup d "$F" --bitmap day --incremental
same "$V/d.qcow2" "$F" "an incremental backup"
# a server that dies in the middle: the bitmap keeps what it had
must qemu-io -c 'write -P 4 8M 8M' "$V/d.qcow2"
nbdkit_off
nbdkit_on --filter=error memory 32M error-pwrite=EIO error-pwrite-rate=100%
refused 'Input/output' $VMCTL disk backup d "$F" --bitmap day --incremental
nbdkit_off
nbdkit_on memory 32M
must $VMCTL disk backup d "$F" --bitmap day --incremental
must qemu-io -f raw -r -c 'read -P 4 8M 8M' "$F"
nbdkit_off

# a guest that writes meanwhile, over a unix socket to a qcow2 file behind qemu-nbd
truncate -s 32M "$T/far.raw"
qemu-nbd -f raw -x far -k "$T/socks/nbd.sock" -t --shared=4 "$T/far.raw" &
HELPERS="$HELPERS $!"
until_true 10 listens "$T/socks/nbd.sock" || fail "qemu-nbd is up"
U="nbd+unix:///far?socket=$T/socks/nbd.sock"
must $VMCTL launch g --accel soft --memory 160M --kernel "$kernels/cloud/vmlinuz" --initrd "$T/initrd" --disk d \
	--cmdline 'console=ttyS0 cryptomgr.notests=1 quiet do=shell' --serial unix:g.sock
ask() { timeout 100 python3 "$TOP/tests/lib/ask.py" "$T/socks/../run/serial/g.sock" "$1" >"$T/said" 2>&1 || fail "the guest: $1: $(cat "$T/said")"; }
ask "dd if=/dev/zero bs=64k count=1 2>/dev/null | tr '\\0' 'a' | dd of=/dev/vda bs=64k seek=400 conv=fsync,notrunc 2>/dev/null"
ask '( (i=0; while :; do i=$((i+1)); dd if=/dev/urandom of=/dev/vda bs=4k seek=$((i % 2000)) count=1 conv=notrunc 2>/dev/null; done) >/dev/null 2>&1 &)'
must $VMCTL disk backup d "$U" --bitmap live
ask "dd if=/dev/zero bs=64k count=1 2>/dev/null | tr '\\0' 'b' | dd of=/dev/vda bs=64k seek=401 conv=fsync,notrunc 2>/dev/null"
must $VMCTL disk backup d "$U" --bitmap live --incremental
must qemu-io -f raw -r -U -c 'read -P 0x61 26214400 64k' -c 'read -P 0x62 26279936 64k' "$T/far.raw"
grep -q 'verification failed' "$T/out" && fail "what was synced before it is in it: $(cat "$T/out")"
# a guest that stands still wrote nothing since: both are the same to the byte
must $VMCTL pause g
must $VMCTL disk backup d "$U" --bitmap live --incremental
must $VMCTL stop --force g
same "$V/d.qcow2" "$T/far.raw" "a backup of a guest that stood still"
check "its file is whole" quiet qemu-img check "$V/d.qcow2"
