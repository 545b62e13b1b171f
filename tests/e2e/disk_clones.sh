#!/usr/bin/env bash
# Overlays by the thousand in one operation: each durable, small, over the same parent, as qemu-img sees it; all or none, also under a
# daemon that is killed; names that do not work are refused before anything is made.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq qemu-img qemu-io
start_vmd
count() { find "$V" -name "$1*" | wc -l; }
V=$STATE/pools/default
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
refused() { # TEXT COMMAND...
	local text=$1
	shift
	"$@" >"$T/out" 2>&1 && fail "refused: $*"
	grep -q "$text" "$T/out" || fail "\"$text\" in the answer to $*: $(cat "$T/out")"
}
must $VMCTL disk create base --size 1G
must qemu-io -c 'write -P 7 1M 64k' "$V/base.qcow2"
must $VMCTL disk clone base one
must qemu-io -r -c 'read -P 7 1M 64k' "$V/one.qcow2"
start=$(date +%s%N)
must $VMCTL disk clone base --count 1000 --name 'web-{n:04}'
took=$((($(date +%s%N) - start) / 1000000))
echo "1,000 clones: $took ms"
[ "$($VMCTL -o json disk ls | jq '[.[] | select(.state == "ready" and .backing == "default/base")] | length')" = 1001 ] || fail "1,001 clones are ready"
for n in 0001 0500 1000; do
	must qemu-img check "$V/web-$n.qcow2"
	must qemu-io -r -c 'read -P 7 1M 64k' "$V/web-$n.qcow2"
	[ "$(stat -c %b "$V/web-$n.qcow2")" -le 32 ] || fail "at most 16 KiB each: $(stat -c %b "$V/web-$n.qcow2") blocks"
done
refused 'one name' $VMCTL disk clone base --count 2 --name web
refused 'exists' $VMCTL disk clone base --count 20 --name 'web-{n:04}'
refused 'not a name' $VMCTL disk clone base --count 2 --name 'a/../b{n}'
refused 'no disk' $VMCTL disk clone nobody x
[ "$(ls "$V" | wc -l)" = 1002 ] || fail "what is refused leaves nothing"
# a daemon that is killed meanwhile: all of them or none
for n in 1 2 3; do
	$VMCTL --no-wait disk clone base --count 500 --name "k$n-{n}" >/dev/null 2>&1
	kill_vmd
	start_vmd
	settled() { [ "$($VMCTL -o json disk ls | jq '[.[] | select(.state != "ready")] | length')" = 0 ] && [ "$(count "k$n-")" = "$($VMCTL -o json disk ls | jq "[.[] | select(.name | startswith(\"k$n-\"))] | length")" ]; }
	until_true 20 settled || fail "records and files agree: $(count "k$n-")"
	got=$(count "k$n-")
	[ "$got" = 0 ] || [ "$got" = 500 ] || fail "all or none: $got"
done
# over a snapshot's layer, and over an image
idle_kernel "$T/idle"
must $VMCTL create g --memory 64M --kernel "$T/idle" --disk name=d,size=8M
refused 'snapshot create' $VMCTL disk clone g-d x
must $VMCTL snapshot create g s
must $VMCTL disk clone g-d.s --count 3 --name 'from-{n}'
must $VMCTL image import "$V/base.qcow2" img
must $VMCTL disk clone img of-img
must qemu-io -r -c 'read -P 7 1M 64k' "$V/of-img.qcow2"
stop_vmd
exit 0
