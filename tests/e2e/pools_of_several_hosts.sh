#!/usr/bin/env bash
# serial
# A pool of two hosts (two daemons here): a disk has one writer. The other host is refused while it lives, by name; takes the disk over
# once it is dead, not before; and a host that lost the lease writes nothing more. Snapshots are followed.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq cpio qemu-img qemu-io python3
kernels=$TOP/.lab/kernels
[ -e "$kernels/cloud/done" ] || "$TOP/tests/lab/kernels" "$kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
check "initrd" "$TOP/tests/lab/initrd" "$T/initrd" "$TOP/tests/lab/init.guest" "$kernels/cloud" virtio_pci virtio_blk virtio_net ext4 button
P=$T/roots/farm
mkdir -p "$P"
# on HOST: the variables of its daemon
# shellcheck disable=SC2034 # they are the library's
on() { STATE=$T/$1 RUN=$T/run-$1 SOCK=$T/run-$1/api.sock; VMCTL="$BUILD/vmctl --socket $SOCK"; }
on b
start_vmd --set "pool_roots=$T/roots"
B_PID=$VMD_PID
on a
start_vmd --set "pool_roots=$T/roots"
both() { local rc=$?; on b; end_guests; kill "$B_PID" 2>/dev/null; wait "$B_PID" 2>/dev/null; on a; (exit $rc); cleanup; }
trap both EXIT
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
refused() { # TEXT COMMAND...
	local text=$1
	shift
	"$@" >"$T/out" 2>&1 && fail "refused: $*"
	grep -q -- "$text" "$T/out" || fail "\"$text\" in the answer to $*: $(cat "$T/out")"
}
launch() { # GUEST DISK
	$VMCTL launch "$1" --accel soft --memory 160M --kernel "$kernels/cloud/vmlinuz" --initrd "$T/initrd" --disk "$2" \
		--cmdline 'console=ttyS0 cryptomgr.notests=1 quiet do=shell' --serial "unix:$1.sock"
}
ask() { timeout 100 python3 "$TOP/tests/lib/ask.py" "$(find "$RUN" -name "$1.sock" -type s | head -1)" "$2" >"$T/said" 2>&1 || fail "guest $1: $2: $(cat "$T/said")"; }
put() { ask "$1" "dd if=/dev/zero bs=64k count=1 2>/dev/null | tr '\\0' '$2' | dd of=/dev/vda bs=64k seek=$3 conv=fsync,notrunc 2>/dev/null"; }
sees() { ask "$1" "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k skip=$3 count=1 2>/dev/null | tr -d '$2' | wc -c | grep -qx 0"; }

# the first makes the pool, the second joins it; who does not say that it is shared does not get in
must $VMCTL pool create farm --path "$P" --shared --stale 3
must $VMCTL disk create web --size 64M --pool farm
on b
refused 'shared' $VMCTL pool create farm --path "$P"
must $VMCTL pool create farm --path "$P" --shared --stale 3
on a
must launch web farm/web
put web a 1

# the other host sees the file and may have it on record, not write it
on b
refused 'must be called' $VMCTL disk create other --pool farm --volume web.qcow2
refused 'no volume' $VMCTL disk create gone --pool farm --volume gone.qcow2
$VMCTL disk info farm/gone >/dev/null 2>&1 && fail "nothing is left of a refused record"
must $VMCTL disk create web --pool farm --volume web.qcow2
[ "$($VMCTL -o json disk info farm/web | jq .size)" = $((64 << 20)) ] || fail "its size: $($VMCTL disk info farm/web)"
refused 'already' $VMCTL disk create web --pool farm --volume web.qcow2
refused 'is alive' $VMCTL disk resize farm/web 128M
refused 'is alive' $VMCTL disk rm farm/web
refused 'guest web.* is alive' launch web farm/web
[ -f "$P/web.qcow2" ] || fail "its file is still there"

# a host that dies: nobody gives the lease back; the other waits until it is stale, and has all that was synced
on a
kill -KILL "$($VMCTL -o json info web | jq .pid)"
until_true 20 eval '[ "$(state_of web)" = crashed ] || [ "$(state_of web)" = failed ] || [ "$(state_of web)" = stopped ]' || fail "it is gone: $(state_of web)"
on b
t0=$SECONDS
must $VMCTL start web
[ $((SECONDS - t0)) -ge 3 ] || fail "it took the disk over before the lease was stale: $((SECONDS - t0)) s"
sees web a 1
put web b 2
on a
refused 'is alive' $VMCTL start web

# a snapshot gives it another top layer: who has the old one on record does not get it even when it is free
on b
must $VMCTL snapshot create web s1
put web c 3
must $VMCTL stop --force web
top=$($VMCTL -o json disk info farm/web | jq -r .file)
[ "$top" != web.qcow2 ] || fail "the snapshot gave it another file"
on a
refused "$top" $VMCTL start web
must $VMCTL delete web --now
[ -f "$P/web.qcow2" ] || fail "a guest that goes leaves the disks of a shared pool"
on b
must $VMCTL start web
sees web c 3

# cut off: another took it over. The guest stands still, nothing is written any more, and it is told why
python3 - "$P/web.lease" <<'PY'
import sys
with open(sys.argv[1], "r+b") as f:
    r = bytearray(f.read())
    r[16] += 1          # generation
    r[40:56] = b"x" * 16  # another's id
    r[56:120] = b"elsewhere: guest web".ljust(64, b"\0")
    c = 0xffffffff
    for b in r[:288]:
        c ^= b
        for _ in range(8):
            c = c >> 1 ^ (0x82f63b78 if c & 1 else 0)
    r[288:292] = (c ^ 0xffffffff).to_bytes(4, "little")
    f.seek(0)
    f.write(r)
PY
timeout 60 python3 "$TOP/tests/lib/ask.py" "$(find "$RUN" -name web.sock -type s | head -1)" "sleep 3; dd if=/dev/zero of=/dev/vda bs=64k seek=5 count=8 conv=fsync,notrunc" >/dev/null 2>&1 &
HELPERS="${HELPERS:-} $!"
until_true 30 eval '[ "$(state_of web)" = paused ]' || fail "it stands still: $(state_of web)"
$VMCTL info web | grep -q 'lease is lost' || fail "it says why: $($VMCTL info web)"
must $VMCTL resume web
until_true 30 eval '[ "$(state_of web)" = paused ]' || fail "and again: $(state_of web)"
must $VMCTL stop --force web
check "the image is whole" quiet qemu-img check "$P/$top"
# the record says that another has it, and nobody renews it: stale after a while
must $VMCTL start web
sees web c 3
must $VMCTL stop --force web
must $VMCTL snapshot rm web/s1
must $VMCTL delete web --now
must $VMCTL disk rm farm/web
until_true 10 eval '! ls "$P" | grep -q web' || fail "all of it is gone: $(ls "$P")"
