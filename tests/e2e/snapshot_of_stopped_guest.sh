#!/usr/bin/env bash
# Snapshots of a guest that does not run: taken of all its disks, put back, built on, removed in any order; names stay, qemu-img reads
# each file; what would spoil one is refused by name; a guest's end takes them with it.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq qemu-img qemu-io
start_vmd
idle_kernel "$T/idle"
V=$STATE/pools/default
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
refused() { # TEXT COMMAND...
	local text=$1
	shift
	"$@" >"$T/out" 2>&1 && fail "refused: $*"
	grep -q "$text" "$T/out" || fail "\"$text\" in the answer to $*: $(cat "$T/out")"
}
count() { find "$V" -name "$1*" | wc -l; }
file_of() { echo "$V/$($VMCTL -o json disk info "$1" | jq -r '.file // (.name + "." + .format)')"; }
holds() { # DISK BYTE OFFSET
	qemu-io -r -c "read -P $2 $3 64k" "$(file_of "$1")" >"$T/out" 2>&1 && ! grep -q 'verification failed' "$T/out" ||
		fail "$1 holds $2 at $3: $(cat "$T/out")"
}
put() { must qemu-io -c "write -P $2 $3 64k" "$(file_of "$1")"; }
must $VMCTL create g --memory 64M --kernel "$T/idle" --disk name=a,size=16M --disk name=b,size=8M,format=raw
put g-a 1 0
must qemu-io -f raw -c 'write -P 9 0 64k' "$V/g-b.raw"
must $VMCTL snapshot create g one
[ "$($VMCTL -o json snapshot ls | jq -r '.[] | [.guest, .name, .state, (.disks | length)] | @csv')" = '"g","one","ready",2' ] || fail "ls shows it: $($VMCTL -o json snapshot ls)"
[ "$($VMCTL -o json snapshot info g/one | jq -r '.live')" = false ] || fail "and that the guest did not run"
[ "$($VMCTL -q snapshot ls g) $($VMCTL -q snapshot ls h)" = "g/one " ] || fail "ls GUEST, and -q by the name that other verbs take"
holds g-a 1 0
put g-a 2 0
put g-b 8 0
must $VMCTL snapshot create g
grep -qx 'snapshot create g/s1: done' "$T/out" || fail "the name that it got is said: $(cat "$T/out")"
[ "$($VMCTL -o json snapshot ls | jq -r '.[1].name')" = s1 ] || fail "one without a name gets one"
put g-a 3 0
put g-a 4 1M
[ "$(qemu-img info --backing-chain --output=json "$(file_of g-a)" | jq length)" = 3 ] || fail "qemu-img follows the chain"
refused 'stays as it is' $VMCTL disk rm g-a.one
refused 'stays as it is' $VMCTL disk resize g-a.one 32M
refused 'stays as it is' $VMCTL disk attach g-a.s1 g
refused 'stays as it is' $VMCTL disk commit g-a
refused 'exists\|already' $VMCTL snapshot create g one
refused 'no snapshot' $VMCTL snapshot restore g two
refused 'did you mean\|no guest' $VMCTL snapshot create h
# a layer is a disk like any other to who only reads it
must $VMCTL disk check g-a.one
must $VMCTL disk convert g-a.one copy
holds copy 1 0
must $VMCTL disk create clone --backing g-a.one
holds clone 1 0
refused 'both built on' $VMCTL snapshot rm g one
must $VMCTL disk rm clone
# back to it: what came after is gone from the disk, not from the newer snapshot
must $VMCTL snapshot restore g one
holds g-a 1 0
holds g-a 0 1M
holds g-b 9 0
[ "$(count g-a)" = 3 ] || fail "the top of before is removed: $(ls "$V")"
must $VMCTL snapshot restore g/s1
holds g-a 2 0
holds g-b 8 0
put g-a 5 2M
# removal: in the middle of the chain, then the rest; the disk keeps what it holds
must $VMCTL --dry-run snapshot rm g one
[ "$($VMCTL -o json snapshot info g/one | jq -r .state)" = ready ] || fail "a dry run removes nothing"
must $VMCTL snapshot rm g one
holds g-a 2 0
holds g-a 5 2M
holds g-b 8 0
must qemu-img check "$(file_of g-a)"
must $VMCTL snapshot rm g s1
[ "$($VMCTL -o json snapshot ls | jq length)" = 0 ] || fail "none is left"
for at in '2 0' '5 2M' '0 1M'; do holds g-a ${at% *} ${at#* }; done
[ "$($VMCTL -o json disk ls | jq -r '[.[] | select(.guest == "g") | .backing] | join("")')" = "" ] || fail "the disks stand alone"
[ "$($VMCTL -o json disk info g-b | jq -r .format)" = raw ] || fail "what was raw is raw again"
files() { [ "$(count g-)" = 2 ]; }
until_true 5 files || fail "two files are left: $(ls "$V")"
# a rename is followed, a daemon killed in the middle goes on or undoes
must $VMCTL snapshot create g keep
must $VMCTL rename g h
must $VMCTL snapshot info h/keep
must $VMCTL snapshot restore h keep
for n in 1 2 3 4 5 6; do
	$VMCTL --no-wait snapshot create h "k$n" >/dev/null 2>&1
	kill_vmd
	start_vmd
	idle() { [ "$($VMCTL -o json ops | jq '[.[] | select(.state == "running" or .state == "queued")] | length')" = 0 ]; }
	until_true 20 idle || fail "operations end: $($VMCTL -o json ops)"
	holds g-a 2 0
	[ "$($VMCTL -o json disk ls | jq '[.[] | select(.state != "ready")] | length')" = 0 ] || fail "disks are ready: $($VMCTL disk ls)"
	[ "$($VMCTL -o json snapshot ls | jq '[.[] | select(.state != "ready")] | length')" = 0 ] || fail "snapshots are whole or not there"
done
for s in $($VMCTL -o json snapshot ls | jq -r '.[].name'); do
	$VMCTL --no-wait snapshot rm h "$s" >/dev/null 2>&1
	kill_vmd
	start_vmd
	until_true 20 idle || fail "a removal ends: $($VMCTL -o json ops)"
	holds g-a 2 0
	holds g-b 8 0
done
$VMCTL -o json snapshot ls | jq -r '.[].name' | while read -r s; do $VMCTL snapshot rm h "$s" >/dev/null 2>&1; done
[ "$($VMCTL -o json snapshot ls | jq length)" = 0 ] || fail "all removed: $($VMCTL snapshot ls)"
holds g-a 2 0
until_true 5 files || fail "no file is left over: $(ls "$V")"
# a bitmap goes on over a snapshot, and ends where the disk is put back: the next incremental backup is right, or refused
nbd_put() { # OFFSET BYTE
	local uri
	uri=$($VMCTL -q disk export g-a --writable) || fail "export: $uri"
	must qemu-io -f raw -c "write -P $2 $1 64k" -c flush "$uri"
	must $VMCTL disk unexport g-a
}
must $VMCTL disk backup g-a full --bitmap bm
nbd_put 4M 11
must $VMCTL snapshot create h marked
nbd_put 5M 12
must $VMCTL disk backup g-a inc --bitmap bm --incremental
must $VMCTL disk compare inc g-a
[ "$($VMCTL -o json disk map inc | jq '[.[] | select(.depth == 0) | .length] | add')" -le $((1 << 20)) ] || fail "only what changed: $($VMCTL -o json disk map inc)"
must $VMCTL snapshot restore h marked
refused 'full one first' $VMCTL disk backup g-a inc2 --bitmap bm --incremental
must $VMCTL snapshot rm h marked
must $VMCTL disk rm inc
must $VMCTL disk rm full
# a guest in the trash keeps its snapshots; another one that takes its name keeps its own
must $VMCTL create old --memory 64M --kernel "$T/idle" --disk name=o,size=1M
must $VMCTL create new --memory 64M --kernel "$T/idle" --disk name=n,size=1M
must $VMCTL snapshot create old x
must $VMCTL snapshot create new x
must $VMCTL delete old
must $VMCTL rename new old
[ "$($VMCTL -q snapshot ls old | sort | paste -sd' ')" = 'old/x old/x-2' ] || fail "both are there: $($VMCTL snapshot ls)"
must $VMCTL snapshot restore old x-2
must $VMCTL snapshot rm old x-2
must $VMCTL delete --now old
must $VMCTL snapshot create h last
must $VMCTL snapshot create h last2
must $VMCTL delete --now h
none() { [ "$(count g-)" = 0 ] && [ "$($VMCTL -o json snapshot ls | jq '[.[] | select(.guest == "h")] | length')" = 0 ]; }
until_true 5 none || fail "they go with the guest: $(ls "$V") $($VMCTL snapshot ls)"
stop_vmd
exit 0
