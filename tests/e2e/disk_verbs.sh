#!/usr/bin/env bash
# Disks through vmctl: create, overlay, check, map, resize, convert, compare, rebase, commit; qemu-img and qemu-io are the other opinion.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq qemu-img qemu-io
start_vmd
V=$STATE/pools/default
refused() { # CODE TEXT COMMAND...: fails with that exit status and says so
	local want=$1 text=$2 rc
	shift 2
	"$@" >"$T/out" 2>&1
	rc=$?
	[ $rc -eq "$want" ] || fail "exit $want of: $* (was $rc): $(cat "$T/out")"
	grep -q "$text" "$T/out" || fail "\"$text\" in the answer to: $*: $(cat "$T/out")"
}
image_ok() { qemu-img check -q "$V/$1" || fail "qemu-img finds errors in $1"; }

check "create" quiet $VMCTL disk create base --size 64M
[ -f "$V/base.qcow2" ] || V=$(dirname "$(find "$STATE" -name base.qcow2)")
check "qemu-io fills it" qemu-io -c 'write -P 1 0 8M' -c 'write -P 2 32M 64k' "$V/base.qcow2" >/dev/null
check "an overlay" quiet $VMCTL disk create top --backing base
check "qemu-io writes the overlay" qemu-io -c 'write -P 3 1M 64k' "$V/top.qcow2" >/dev/null

check "check" quiet $VMCTL disk check base
grep -q 'no errors' "$T/out" || fail "check says so: $(cat "$T/out")"
check "check as JSON" $VMCTL -o json disk check base >"$T/out" 2>/dev/null
jq -e '.errors == 0 and .data_clusters > 0' "$T/out" >/dev/null || fail "check's JSON: $(cat "$T/out")"
check "map" $VMCTL -o json disk map top >"$T/out" 2>/dev/null
jq -e 'map(select(.data and .depth == 0)) | length == 1 and .[0].start == 1048576 and .[0].length == 65536' "$T/out" >/dev/null || fail "map shows the overlay's own part: $(cat "$T/out")"
[ "$(jq -c 'map(select(.data) | [.start, .length, .depth])' "$T/out")" = "$(qemu-img map --output=json "$V/top.qcow2" | jq -c 'map(select(.data) | [.start, .length, .depth])')" ] || fail "map agrees with qemu-img's"

# a leak: found, not mended unasked, mended when asked
check "qemu-img makes a disk that leaks" cp "$V/base.qcow2" "$T/leaky"
refused 1 'differs' $VMCTL disk compare base top
refused 2 'wants a with' $VMCTL disk compare base
refused 3 'nobody' $VMCTL disk compare base nobody

check "resize" quiet $VMCTL disk resize top 96M
[ "$(qemu-img info --output=json "$V/top.qcow2" | jq '.["virtual-size"]')" = $((96 << 20)) ] || fail "qemu-img sees the new size"
refused 2 'shrink' $VMCTL disk resize top 8M
check "shrink what is zero" quiet $VMCTL disk resize top 64M --shrink
refused 4 'holds data' $VMCTL disk resize top 1M --shrink
[ "$($VMCTL -o json disk info top | jq .size)" = $((64 << 20)) ] || fail "a refused shrink changes nothing"

for how in no zlib zstd; do
	check "convert, compress=$how" quiet $VMCTL disk convert top "flat-$how" --compress "$how"
	check "the copy is equal" quiet $VMCTL disk compare top "flat-$how"
	check "qemu-img says so too" qemu-img compare -q "$V/top.qcow2" "$V/flat-$how.qcow2"
	image_ok "flat-$how.qcow2"
done
$VMCTL -o json disk check flat-zstd 2>/dev/null | jq -e '.compressed_clusters > 0' >/dev/null || fail "zstd compresses"
$VMCTL -o json disk check flat-zlib 2>/dev/null | jq -e '.compressed_clusters > 0' >/dev/null || fail "zlib compresses"
check "convert to raw" quiet $VMCTL disk convert top flat --format raw
check "the raw copy is equal" qemu-img compare -q -F raw "$V/top.qcow2" "$V/flat.raw"
refused 4 'exists' $VMCTL disk convert top flat --format raw

# commit: the parent then holds what the overlay shows; not when others are built on it
check "a second overlay" quiet $VMCTL disk create other --backing base
refused 4 'other' $VMCTL disk commit top
check "dry run changes nothing" quiet $VMCTL --dry-run disk rebase other
[ "$($VMCTL -o json disk info other | jq -r .backing)" != null ] || fail "a dry run left the parent alone"
# rebase: the other overlay stands alone, with the same content
check "rebase onto nothing" quiet $VMCTL disk rebase other
[ "$($VMCTL -o json disk info other | jq -r .backing)" = null ] || fail "the record names no parent"
qemu-img info --output=json "$V/other.qcow2" | jq -e '.["backing-filename"] == null' >/dev/null || fail "the file names no parent"
check "same content as before" quiet $VMCTL disk compare other base
check "commit" quiet $VMCTL disk commit top
check "the parent now holds it" quiet $VMCTL disk compare base flat
image_ok base.qcow2
image_ok top.qcow2
refused 2 'nothing' $VMCTL disk commit base
refused 1 'differs' $VMCTL disk compare other base
# onto another parent: what differs is copied
check "rebase onto another" quiet $VMCTL disk rebase top --backing other
[ "$($VMCTL -o json disk info top | jq -r .backing)" = default/other ] || fail "the record names the new parent: $($VMCTL -o json disk info top)"
check "same content still" quiet $VMCTL disk compare top flat
check "qemu-img follows the new parent" qemu-img compare -q -F raw "$V/top.qcow2" "$V/flat.raw"
refused 2 'built on' $VMCTL disk rebase other --backing top
refused 4 'built on' $VMCTL disk rm other
refused 2 'overlay\|qcow2' $VMCTL disk rebase flat --backing base

# an image as parent does not change
check "import" quiet $VMCTL image import "$V/flat.raw" img --format raw
check "overlay of an image" quiet $VMCTL disk create of-img --image img
refused 2 'images do not change' $VMCTL disk commit of-img
check "rebase from an image to nothing" quiet $VMCTL disk rebase of-img
check "the content stays" quiet $VMCTL disk compare of-img flat
check "rebase onto the image" quiet $VMCTL disk rebase of-img --image img
check "the content stays again" quiet $VMCTL disk compare of-img flat

# a broken image: the check says so, a repair mends it, other verbs name it
cp "$V/flat-no.qcow2" "$T/copy"
printf '\377\377' | dd of="$V/flat-no.qcow2" bs=1 seek=$((0x20000)) conv=notrunc status=none
quiet $VMCTL disk check flat-no
rc=$?
[ $rc -ne 0 ] || qemu-img check -q "$V/flat-no.qcow2" || fail "check finds what qemu-img finds: $(cat "$T/out")"
quiet $VMCTL disk check flat-no --repair all
image_ok flat-no.qcow2
check "every disk is ready again" test "$($VMCTL -o json disk ls | jq 'map(select(.state != "ready")) | length')" = 0
for d in top other of-img base flat flat-no flat-zlib flat-zstd; do check "rm $d" quiet $VMCTL disk rm $d; done
no_file() { [ -z "$(find "$V" -name '*.qcow2')" ]; }
until_true 5 no_file || fail "no file is left: $(ls "$V")"
stop_vmd
exit 0
