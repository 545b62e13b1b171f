#!/usr/bin/env bash
# serial
# Backups of a disk while its guest runs and writes, on the software CPU: full and incremental, each what the disk held at that moment;
# its bitmap made and merged live; a chain made shorter under the guest (rebase); a daemon that is killed meanwhile; the guest goes on.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq cpio qemu-img qemu-io nbdinfo python3
kernels=$TOP/.lab/kernels
[ -e "$kernels/cloud/done" ] || "$TOP/tests/lab/kernels" "$kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
check "initrd" "$TOP/tests/lab/initrd" "$T/initrd" "$TOP/tests/lab/init.guest" "$kernels/cloud" virtio_pci virtio_blk virtio_net ext4 button
start_vmd
V=$STATE/pools/default
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
must $VMCTL disk create base --size 32M
must qemu-io -c 'write -P 0x62 0 1M' "$V/base.qcow2"
must $VMCTL disk create mid --backing base
must qemu-io -c 'write -P 0x6d 1M 1M' "$V/mid.qcow2"
must $VMCTL disk create top --backing mid
must $VMCTL launch g --accel soft --memory 192M --kernel "$kernels/cloud/vmlinuz" --initrd "$T/initrd" --disk top \
	--cmdline 'console=ttyS0 cryptomgr.notests=1 quiet do=shell' --serial unix:g.sock
sock=$(find "$RUN" -name g.sock)
[ -S "$sock" ] || fail "the guest's port is a socket: $(find "$RUN")"
cat >"$T/ask.py" <<'PY'
import socket, sys, time
# ask.py SOCKET COMMAND: types it into the guest's shell, waits for its end, prints what it said
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.settimeout(90)
got = b''
def until(what):
    global got
    while what not in got or b'\n' not in got.split(what, 1)[1] and what != b'/ # ':
        more = s.recv(65536)
        if not more:
            sys.exit('the console ended: %r' % got)
        got += more
until(b'/ # ')
mark = 'E%d=' % time.time_ns() # what was said before is shown again to who attaches
s.sendall((sys.argv[2] + '; echo "E""%s$?"\n' % mark[1:]).encode())
until(mark.encode())
print(got.decode(errors='replace'))
sys.exit(int(got.split(mark.encode(), 1)[1].split()[0]))
PY
ask() { timeout 100 python3 "$T/ask.py" "$sock" "$1" >"$T/said" 2>&1 || fail "the guest: $1: $(cat "$T/said")"; }
# a byte, as printed by tr, in 64 KiB at 64K * N of a disk, through the guest's own driver
put() { ask "dd if=/dev/zero bs=64k count=1 2>/dev/null | tr '\\0' '$2' | dd of=/dev/$1 bs=64k seek=$3 conv=fsync,notrunc 2>/dev/null"; }
sees() { ask "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/$1 bs=64k skip=$3 count=1 2>/dev/null | tr -d '$2' | wc -c | grep -qx 0"; }
file_of() { echo "$V/$($VMCTL -o json disk info "$1" | jq -r '.file // (.name + "." + .format)')"; }
holds() { # DISK BYTE OFFSET: qemu-io's opinion
	qemu-io -r -U -c "read -P $2 $3 64k" "$(file_of "$1")" >"$T/out" 2>&1 && ! grep -q 'verification failed' "$T/out" || fail "$1 holds $2 at $3: $(cat "$T/out")"
}
put vda a 32
must $VMCTL disk backup top full --bitmap b
holds full 0x61 2M
holds full 0x62 0
put vda c 32
put vda d 33
must $VMCTL disk backup top inc --bitmap b --incremental
holds inc 0x63 2M
holds inc 0x64 2112k
holds inc 0x6d 1M
holds full 0x61 2M
holds full 0 2112k
must qemu-img check "$(file_of full)"
must qemu-img check "$(file_of inc)"
must $VMCTL disk bitmap top live
$VMCTL disk bitmap top live >"$T/out" 2>&1 && fail "a bitmap is made once"
put vda e 34
must $VMCTL disk bitmap top b --do merge --source live
$VMCTL -o json disk inspect top >"$T/inspect" 2>&1 || fail "inspect of a disk in use: $(cat "$T/inspect")"
[ "$(jq '."virtual-size"' "$T/inspect")" = $((32 << 20)) ] || fail "inspect of a disk in use: $(cat "$T/inspect")"
# its snapshot over NBD, with the bitmap, while the guest writes on
must $VMCTL snapshot create g shot
put vda g 35
uri=$($VMCTL -q disk export top.shot --bitmap b) || fail "a layer is exported with its bitmap: $uri"
nbdinfo --map=qemu:dirty-bitmap:b --json "$uri" >"$T/map" || fail "nbdinfo --map of the bitmap: $(cat "$T/map")"
jq -e '[.[] | select(.type == 1 and .offset <= 2228224 and .offset + .length >= 2293760)] | length == 1' "$T/map" >/dev/null || fail "it has what was written: $(cat "$T/map")"
must qemu-io -r -f raw -c 'read -P 0x65 2176k 64k' -c 'read -P 0 2240k 64k' "$uri"
must $VMCTL disk unexport top.shot
must $VMCTL snapshot rm g shot
# a daemon that is killed while it is backed up: the next one knows whether the chain of backups is whole
for n in 1 2 3; do
	put vda "$n" 40
	$VMCTL --no-wait disk backup top "k$n" --bitmap b --incremental >/dev/null 2>&1
	kill_vmd
	start_vmd
	idle() { [ "$($VMCTL -o json ops | jq '[.[] | select(.state == "running" or .state == "queued")] | length')" = 0 ] && [ "$($VMCTL -o json disk ls | jq '[.[] | select(.state != "ready")] | length')" = 0 ]; }
	until_true 20 idle || fail "it ends: $($VMCTL -o json ops) $($VMCTL disk ls)"
	new=k$n
	if ! $VMCTL disk info "k$n" >/dev/null 2>&1; then
		new=again$n
		if ! $VMCTL disk backup top "again$n" --bitmap b --incremental >"$T/out" 2>&1; then
			grep -q 'full one first\|under way' "$T/out" || fail "it says what is left to do: $(cat "$T/out")"
			full() { $VMCTL disk backup top "again$n" --bitmap b; }
			until_true 20 full || fail "a full one then works: $($VMCTL disk backup top "again$n" --bitmap b 2>&1)"
		fi
	fi
	holds "$new" "0x3$n" 2560k
	holds "$new" 0x65 2176k
	holds "$new" 0x62 0
done
# the chain under the guest: first without its middle, then without a parent
$VMCTL disk rebase top --backing full >"$T/out" 2>&1 && fail "a disk in use moves to no other parent"
grep -q 'in use' "$T/out" || fail "and that is said: $(cat "$T/out")"
must $VMCTL disk rebase top --backing base
[ "$($VMCTL -o json disk info top | jq -r .backing)" = default/base ] || fail "the record names base"
sees vda m 16
sees vda b 0
must $VMCTL disk rm mid
put vda f 48
must $VMCTL disk rebase top
[ "$($VMCTL -o json disk info top | jq -r .backing)" = null ] || fail "it stands alone"
must $VMCTL disk rm base --force
for at in 'b 0' 'm 16' 'c 32' 'd 33' 'e 34' 'f 48'; do sees vda ${at% *} ${at#* }; done
$VMCTL stop --force g >/dev/null 2>&1
must qemu-img check "$(file_of top)"
qemu-img info --output=json "$(file_of top)" | jq -e '."backing-filename" == null' >/dev/null || fail "the file names no parent"
must $VMCTL start g
sock=$(find "$RUN" -name g.sock)
for at in 'b 0' 'm 16' 'f 48'; do sees vda ${at% *} ${at#* }; done
stop_vmd
exit 0
