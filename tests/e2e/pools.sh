#!/usr/bin/env bash
# Pools: figures, quota, watermark with its event; one that is unmounted, moved, read-only or full is named as that, nothing is made in
# its place, and it comes back by itself; what its disks' guests and other pools do goes on.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq qemu-io unshare
[ -n "${POOLS_MOUNTS:-}" ] || {
	rm -rf "$T"
	unshare -m true 2>/dev/null || skip "needs mount namespaces"
	POOLS_MOUNTS=1 exec unshare -m -- bash "$0" "$@"
}
leave() { local rc=$?; umount -l "$T/roots/p" 2>/dev/null; (exit $rc); cleanup; }
trap leave EXIT
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
refused() { # TEXT COMMAND...
	local text=$1
	shift
	"$@" >"$T/out" 2>&1 && fail "refused: $*"
	grep -q -- "$text" "$T/out" || fail "\"$text\" in the answer to $*: $(cat "$T/out")"
}
mkdir -p "$T/roots/p"
mount -t tmpfs -o size=64m tmpfs "$T/roots/p" 2>/dev/null || skip "needs to mount a tmpfs"
start_vmd --set "pool_roots=$T/roots"
must $VMCTL pool create p --path "$T/roots/p" --watermark 40
must $VMCTL disk create d --size 32M --pool p
must $VMCTL disk create e --size 96M --pool p
value() { $VMCTL -o json pool info "$1" | jq -r ".$2"; }
figures() { [ "$(value p volumes)" = 2 ] && [ "$(value p provisioned)" = $((128 << 20)) ] && [ "$(value p size)" = $((64 << 20)) ] && [ "$(value p overcommit)" = 200 ]; }
until_true 15 figures || fail "figures: $($VMCTL -o json pool info p)"
must qemu-io -c 'write -P 1 0 30M' "$T/roots/p/d.qcow2"
grown() { [ "$($VMCTL -o json disk info p/d | jq -r .allocated)" -ge $((30 << 20)) ] && [ "$(value p allocated)" -ge $((30 << 20)) ] && [ "$(value p used)" -ge 40 ]; }
until_true 15 grown || fail "what it takes on the host is seen: $($VMCTL -o json pool info p) $($VMCTL -o json disk info p/d)"
event() { timeout 5 curl -sN --unix-socket "$SOCK" -H 'Last-Event-ID: 0' http://localhost/v1/events | grep -q "$1"; }
until_true 10 event 'pool.watermark' || fail "the watermark is an event"
# quota
must $VMCTL pool set p --quota 20M
refused 'that it may' $VMCTL disk create f --size 1M --pool p
must $VMCTL pool set p --quota 60M
must $VMCTL disk create f --size 1M --pool p
must $VMCTL disk rm p/f
# unmounted: the directory is there and empty, and nothing is made in it
umount -l "$T/roots/p"
missing() { [ "$(value p state)" = missing ]; }
until_true 15 missing || fail "it is seen to be missing: $($VMCTL -o json pool info p)"
value p reason | grep -q 'not the pool' || fail "and why: $(value p reason)"
refused 'not there' $VMCTL disk create g --size 1M --pool p
refused 'not there' $VMCTL disk check p/d
[ -z "$(ls -A "$T/roots/p")" ] || fail "nothing is made in its place: $(ls -A "$T/roots/p")"
until_true 10 event 'pool.missing' || fail "it is an event"
must $VMCTL disk create here --size 4M
must qemu-io -c 'write -P 3 0 3M' "$STATE/pools/default/here.qcow2"
# back: another file system with the same mark is the pool again; one without is not
mount -t tmpfs -o size=64m tmpfs "$T/roots/p"
refused 'not there' $VMCTL disk create g --size 1M --pool p
umount "$T/roots/p"
rmdir "$T/roots/p"
until_true 15 eval 'value p reason | grep -q "cannot open\|not the pool"' || fail "a directory that is gone: $(value p reason)"
mkdir "$T/roots/p"
mount -t tmpfs -o size=8m tmpfs "$T/roots/p"
value p uuid >/dev/null
id=$(sqlite3 "$STATE"/*.db "select id from objects where kind='pool' and name='p'" 2>/dev/null || true)
[ -n "$id" ] || id=$(python3 - "$STATE" <<'PY'
import glob, sqlite3, sys
for f in glob.glob(sys.argv[1] + '/**/*', recursive=True):
    try:
        for row in sqlite3.connect('file:%s?mode=ro' % f, uri=True).execute("select id from objects where kind='pool' and name='p'"):
            print(row[0])
            sys.exit()
    except sqlite3.Error:
        pass
PY
)
[ -n "$id" ] || fail "the pool is on record"
echo "$id" >"$T/roots/p/.vmd-pool"
ready() { [ "$(value p state)" = ready ]; }
until_true 15 ready || fail "it is there again: $($VMCTL -o json pool info p)"
# full: the file that does not fit is named so and leaves nothing
must $VMCTL disk create h --size 64M --pool p --format raw
head -c 7900k /dev/zero >"$T/roots/p/filler" 2>/dev/null
refused 'space\|full' $VMCTL disk convert here there --pool p --format qcow2
[ ! -e "$T/roots/p/there.qcow2" ] || until_true 5 test ! -e "$T/roots/p/there.qcow2" || fail "nothing half-made stays: $(ls "$T/roots/p")"
rm -f "$T/roots/p/filler"
# read-only
mount -o remount,ro "$T/roots/p"
until_true 15 eval '[ "$(value p state)" = read-only ]' || fail "read-only is seen: $($VMCTL -o json pool info p)"
refused 'read-only' $VMCTL disk create i --size 1M --pool p
mount -o remount,rw "$T/roots/p"
until_true 15 ready || fail "and writable again"
# a pool of a guest's own name for another: refused while marked, gone with pool rm
refused 'another pool' $VMCTL pool create q --path "$T/roots/p"
for d in d e h; do must $VMCTL disk rm "p/$d"; done
must $VMCTL pool rm p
gone() { [ ! -e "$T/roots/p/.vmd-pool" ]; }
until_true 5 gone || fail "its mark goes with it"
must $VMCTL pool create q --path "$T/roots/p"
stop_vmd
umount "$T/roots/p"
exit 0
