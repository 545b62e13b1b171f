#!/usr/bin/env bash
# The state on media that fail: a damaged database is refused by name and left alone while guests run on, and a copy of it is put back; a
# full file system and a read-only one refuse changes with the reason, answer reads, and lose nothing.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
requires root gcc jq sqlite3
idle_kernel "$T/idle"
refused() { # WHAT TEXT COMMAND...
	local what=$1 text=$2
	shift 2
	"$@" >"$T/out" 2>&1 && fail "$what is refused"
	grep -qi -- "$text" "$T/out" || fail "$what: the refusal says ($text): $(cat "$T/out")"
}
mkdir -p "$STATE"
mount -t tmpfs -o size=24m tmpfs "$STATE" 2>/dev/null || skip "needs mount"
HELPER_MOUNT=$STATE
trap 'umount -l "$HELPER_MOUNT" 2>/dev/null; cleanup' EXIT
start_vmd
check "create" quiet $VMCTL create a --accel soft --memory 64M --kernel "$T/idle" --serial log --label n=1
check "start" quiet $VMCTL start a
pid=$($VMCTL -o json info a | jq -r .pid)
db=$STATE/db/vmd.db

# full: reads go on, changes are refused with the way out, and go through when there is room
dd if=/dev/zero of="$STATE/ballast" bs=64k >/dev/null 2>&1
fills() { ! $VMCTL set a --label "x$((++n))=$(printf 'y%.0s' {1..200})" >"$T/out" 2>&1; }
n=0
until_true 20 fills || fail "a full file system is noticed"
grep -qi 'full\|no space\|cannot be written' "$T/out" || fail "the refusal says why: $(cat "$T/out")"
check "reads go on" quiet $VMCTL ls
refused "a create" 'state\|space\|full' $VMCTL create b --accel soft --kernel "$T/idle"
kill -0 "$pid" || fail "the guest runs on"
rm "$STATE/ballast"
again() { $VMCTL set a --label n=2; }
until_true 20 again || fail "changes are taken again when there is room: $($VMCTL set a --label n=2 2>&1)"
$VMCTL -o json ls | jq -e 'map(.name) == ["a"]' >/dev/null || fail "nothing half-made is listed: $($VMCTL ls)"

# a copy is made within seconds of the first start
copied() { [ -s "$db.copy" ] && [ ! -e "$db.copy.new" ]; }
until_true 20 copied || fail "a copy is made: $(ls -l "$STATE/db")"
[ "$(sqlite3 "$db.copy" "SELECT count(*) FROM objects WHERE kind = 'guest'")" = 1 ] || fail "it holds the guest"

# read-only
stop_vmd
mount --bind "$STATE/db" "$STATE/db" && mount -o remount,bind,ro "$STATE/db" || fail "mount --bind"
start_vmd
$VMCTL -o json ls | jq -e 'map(.name) == ["a"]' >/dev/null || fail "reads go on: $($VMCTL ls)"
refused "a change" 'cannot be written' $VMCTL set a --label n=3
kill -0 "$pid" || fail "the guest runs on"
mount -o remount,bind,rw "$STATE/db" || fail "remount"
until_true 20 again || fail "changes are taken again once it can be written: $($VMCTL set a --label n=3 2>&1)"
stop_vmd
umount "$STATE/db" || fail "umount"

# damaged: refused by name, left as it is, the guest runs on
start_vmd
check "create" quiet $VMCTL create late --accel soft --memory 64M --kernel "$T/idle"
stop_vmd
sqlite3 "$db" 'PRAGMA wal_checkpoint(TRUNCATE)' >/dev/null
pages=$(($(stat -c %s "$db") / 4096))
for p in $(seq 1 $((pages - 1))); do printf 'not what was written here' | dd of="$db" bs=1 seek=$((p * 4096)) conv=notrunc 2>/dev/null; done
sum=$(sha256sum <"$db")
timeout 20 "$BUILD/vmd" --state "$STATE" --run "$RUN" >"$T/refusal" 2>&1 </dev/null
rc=$?
[ $rc -eq 78 ] || fail "a damaged database is refused, exit status 78: $rc, $(cat "$T/refusal")"
grep -q "database $db is damaged" "$T/refusal" || fail "the refusal names the file: $(cat "$T/refusal")"
grep -q 'vmd --restore' "$T/refusal" || fail "and the way out: $(cat "$T/refusal")"
[ "$sum" = "$(sha256sum <"$db")" ] || fail "it is left as it is"
kill -0 "$pid" || fail "the guest runs on"
# its copy comes back, and adopts
check "restore" quiet "$BUILD/vmd" --state "$STATE" --run "$RUN" --restore
kept=$(find "$STATE/db" -name 'vmd.db.damaged-*[0-9]')
[ "$sum" = "$(sha256sum <"$kept")" ] || fail "the damaged one is kept: $(ls "$STATE/db")"
start_vmd
adopted() { [ "$(state_of a)" = running ] && [ "$($VMCTL -o json info a | jq -r .pid)" = "$pid" ]; }
until_true 10 adopted || fail "the guest of the copy is adopted: $($VMCTL ls)"
refused "a restore under a running daemon" 'vmd runs in' "$BUILD/vmd" --state "$STATE" --run "$RUN" --restore
stop_vmd
# rows that are not objects count as damage as well; a new database only where it is asked for
sqlite3 "$db" "UPDATE objects SET doc = '[1' WHERE kind = 'pool'" || fail "sqlite3"
timeout 20 "$BUILD/vmd" --state "$STATE" --run "$RUN" >"$T/refusal" 2>&1 </dev/null
[ $? -eq 78 ] || fail "rows that are no objects are refused: $(cat "$T/refusal")"
refused "a file that is no database" 'not an sqlite' "$BUILD/vmd" --state "$STATE" --run "$RUN" --restore="$T/idle"
check "restore=empty" quiet "$BUILD/vmd" --state "$STATE" --run "$RUN" --restore=empty
start_vmd
[ "$($VMCTL -o json ls | jq length)" = 0 ] || fail "an empty one was asked for: $($VMCTL ls)"
kill -0 "$pid" || fail "a guest that is on no record is left alone"
exit 0
