#!/usr/bin/env bash
# Backups of disks that nobody uses: full, incremental by a bitmap, a chain of them, each showing the whole disk; restored; a broken one
# leaves nothing and costs a full backup at most; inspect and compact beside qemu-img's view.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq qemu-img qemu-io nbdinfo
start_vmd
V=$STATE/pools/default
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
refused() { # TEXT COMMAND...
	local text=$1
	shift
	"$@" >"$T/out" 2>&1 && fail "refused: $*"
	grep -q "$text" "$T/out" || fail "\"$text\" in the answer to $*: $(cat "$T/out")"
}
file_of() { echo "$V/$($VMCTL -o json disk info "$1" | jq -r '.file // (.name + "." + .format)')"; }
# writes go through our own NBD server, which keeps the bitmaps; qemu-io would drop nothing either, but is not what is tested
put() { # DISK BYTE OFFSET LENGTH
	local uri
	uri=$($VMCTL -q disk export "$1" --writable) || fail "export: $uri"
	must qemu-io -f raw -c "write -P $2 $3 $4" -c flush "$uri"
	must $VMCTL disk unexport "$1"
}
same() { must qemu-img compare -q "$(file_of "$1")" "$2"; }
keep() { must qemu-img convert -O qcow2 "$(file_of d)" "$T/$1"; }
must $VMCTL disk create d --size 64M
put d 1 0 1M
put d 2 32M 1M
must $VMCTL disk backup d full --bitmap b
keep full
same full "$T/full"
$VMCTL -o json disk inspect d >"$T/inspect" || fail "inspect"
jq -e '."virtual-size" == 67108864 and .format == "qcow2" and ."format-specific".data.bitmaps[0].name == "b" and .filename == "d.qcow2"' "$T/inspect" >/dev/null || fail "inspect says what it is: $(cat "$T/inspect")"
qemu-img info --output=json "$(file_of d)" >"$T/qinfo"
for key in '."virtual-size"' '."cluster-size"' '."actual-size"' '."format-specific".data."extended-l2"' '."format-specific".data."refcount-bits"'; do
	[ "$(jq "$key" "$T/inspect")" = "$(jq "$key" "$T/qinfo")" ] || fail "$key as qemu-img says: $(jq "$key" "$T/inspect") $(jq "$key" "$T/qinfo")"
done
[ "$($VMCTL -o json disk info d | jq .allocated)" = "$(jq '."actual-size"' "$T/qinfo")" ] || fail "what it takes on the host is on record"
put d 3 1M 64k
put d 0 32M 512k
must $VMCTL disk backup d inc1 --bitmap b --incremental
keep inc1
same inc1 "$T/inc1"
same full "$T/full"
[ "$($VMCTL -o json disk map inc1 | jq '[.[] | select(.depth == 0) | .length] | add')" -le $((2 << 20)) ] || fail "only what changed: $($VMCTL -o json disk map inc1)"
put d 4 63M 1M
must $VMCTL disk backup d inc2 --bitmap b --incremental
keep inc2
same inc2 "$T/inc2"
same inc1 "$T/inc1"
for f in full inc1 inc2; do must qemu-img check "$(file_of $f)"; done
# what a writer puts into an exported disk's bitmap, others see
refused 'wants a bitmap' $VMCTL disk backup d x --incremental
refused 'full one first' $VMCTL disk backup d x --incremental --bitmap nosuch
refused 'exists' $VMCTL disk backup d inc1
# back to a backup: the disk's content, and no half file
must $VMCTL disk restore d inc1
same d "$T/inc1"
[ "$(file_of d)" != "$V/d.qcow2" ] && [ ! -e "$V/d.qcow2" ] || until_true 5 test ! -e "$V/d.qcow2" || fail "the old file goes"
refused 'full one first' $VMCTL disk backup d x --incremental --bitmap b
# the bitmap as NBD clients see it
uri=$($VMCTL -q disk export d --bitmap nosuch 2>"$T/out") && fail "a bitmap that is not there is not shown: $uri"
grep -q nosuch "$T/out" || fail "it is named: $(cat "$T/out")"
until_true 5 eval '[ "$($VMCTL -o json disk info d | jq -r .state)" = ready ]' || fail "and the disk is free again"
# bitmaps by hand
must $VMCTL disk bitmap d m1
must $VMCTL disk bitmap d m2 --granularity 128K
put d 9 5M 64k
must $VMCTL disk bitmap d m2 --do merge --source m1
must $VMCTL disk bitmap d m1 --do remove
uri=$($VMCTL -q disk export d --bitmap m2) || fail "export with a bitmap: $uri"
nbdinfo --map=qemu:dirty-bitmap:m2 --json "$uri" >"$T/map" || fail "nbdinfo --map of the bitmap: $(cat "$T/map")"
jq -e '[.[] | select(.type == 1)] | length == 1 and .[0].offset <= 5242880 and .[0].offset + .[0].length >= 5308416' "$T/map" >/dev/null || fail "it has what was written: $(cat "$T/map")"
must $VMCTL disk unexport d
[ "$($VMCTL -o json disk inspect d | jq -c '[."format-specific".data.bitmaps[].name]')" = '["m2"]' ] || fail "inspect lists them: $($VMCTL -o json disk inspect d)"
refused 'm1\|no bitmap' $VMCTL disk bitmap d m1 --do clear
must qemu-img check "$(file_of d)"
# a daemon killed in the middle of a backup: undone, and the next incremental is refused or whole
must $VMCTL disk backup d full2 --bitmap k
for n in 1 2 3; do
	put d "$n" $((n * 3))M 1M
	$VMCTL --no-wait disk backup d "k$n" --bitmap k --incremental >/dev/null 2>&1
	kill_vmd
	start_vmd
	idle() { [ "$($VMCTL -o json ops | jq '[.[] | select(.state == "running" or .state == "queued")] | length')" = 0 ] && [ "$($VMCTL -o json disk ls | jq '[.[] | select(.state != "ready")] | length')" = 0 ]; }
	until_true 20 idle || fail "it ends: $($VMCTL -o json ops) $($VMCTL disk ls)"
	keep now
	if $VMCTL disk info "k$n" >/dev/null 2>&1; then
		same "k$n" "$T/now"
	elif $VMCTL disk backup d "again$n" --bitmap k --incremental >"$T/out" 2>&1; then
		same "again$n" "$T/now"
	else
		grep -q 'full one first' "$T/out" || fail "it says what is left to do: $(cat "$T/out")"
		must $VMCTL disk backup d "more$n" --bitmap k
		same "more$n" "$T/now"
	fi
done
# compact: what was written and zeroed goes back to the host
must $VMCTL disk create c --size 64M
put c 7 0 32M
put c 0 0 30M
before=$(stat -c %b "$(file_of c)")
must $VMCTL disk convert c was
must $VMCTL disk compact c
grep -q 'given back' "$T/out" || fail "it says what it freed: $(cat "$T/out")"
[ "$(stat -c %b "$(file_of c)")" -lt $((before / 4)) ] || fail "smaller: $before, $(stat -c %b "$(file_of c)")"
must $VMCTL disk compare c was
must qemu-img check "$(file_of c)"
stop_vmd
exit 0
