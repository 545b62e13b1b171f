#!/usr/bin/env bash
# Images of other makers: VMDK, VDI, VHDX and VHD as qemu-img writes them become qcow2 of the same content; a descriptor that names other
# files of the host reaches none of them; what is none of these is refused, and a daemon killed meanwhile ends the import afterwards.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq qemu-img qemu-io qemu-nbd
start_vmd
V=$STATE/pools/default
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
file_of() { echo "$V/$($VMCTL -o json image info "$1" | jq -r '.file // (.name + ".img")')"; }
must qemu-img create -f raw "$T/raw" 24M
must qemu-io -f raw -c 'write -P 1 0 64k' -c 'write -P 2 5M 1M' -c 'write -P 3 23M 1M' "$T/raw"
n=0
while read -r format ending options; do
	n=$((n + 1))
	# shellcheck disable=SC2086
	must qemu-img convert -f raw -O "$format" ${options:+-o $options} "$T/raw" "$T/i$n.$ending"
	must $VMCTL image import "$T/i$n.$ending"
	[ "$($VMCTL -o json image info "i$n" | jq -r '[.format, .state, .virtual_size // 0] | @csv')" = "\"qcow2\",\"ready\",$((24 << 20))" ] ||
		[ "$format" = vpc ] || fail "$format $options is a qcow2 now: $($VMCTL -o json image info "i$n")"
	must qemu-img check "$(file_of "i$n")"
	must qemu-img compare -f raw -F qcow2 "$T/raw" "$(file_of "i$n")"
	[ ! -e "$V/i$n.img" ] || until_true 5 [ ! -e "$V/i$n.img" ] || fail "the upload goes: $(ls "$V")"
done <<'END'
vmdk vmdk subformat=monolithicSparse
vmdk vmdk subformat=streamOptimized
vdi vdi
vdi vdi static=on
vhdx vhdx
vhdx vhdx subformat=fixed
vpc vhd force_size=on
vpc VHD subformat=fixed,force_size=on
END
# a disk is built on one
must $VMCTL disk clone i1 d
must qemu-img compare -f raw -F qcow2 "$T/raw" "$V/d.qcow2"
refused() { # TEXT COMMAND...
	local text=$1
	shift
	"$@" >"$T/out" 2>&1 && fail "refused: $*"
	grep -q "$text" "$T/out" || fail "\"$text\" in the answer to $*: $(cat "$T/out")"
	[ -z "$(find "$V" -name '*evil*')" ] || until_true 5 eval '[ -z "$(find "$V" -name "*evil*")" ]' || fail "nothing of it is left: $(ls "$V")"
}
# descriptors that name files of the host, in each way that the format has
echo 'the secret of the host' >"$T/secret"
truncate -s 1M "$T/secret"
mkdir "$T/evil"
for extent in 'FLAT' 'VMFS' 'SPARSE'; do
	printf '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 2048 %s "%s" 0\n' $extent "$T/secret" >"$T/evil/evil.vmdk"
	refused 'evil' $VMCTL image import "$T/evil/evil.vmdk"
	$VMCTL image rm evil >/dev/null 2>&1
done
must qemu-img create -f vmdk "$T/parent.vmdk" 1M
must qemu-img create -f vmdk -F vmdk -b "$T/parent.vmdk" "$T/evil/evil.vmdk"
refused 'evil' $VMCTL image import "$T/evil/evil.vmdk"
$VMCTL image rm evil >/dev/null 2>&1
# none of these; cut off; empty
for ending in vmdk vdi vhdx; do
	head -c 100000 /dev/urandom >"$T/evil/evil.$ending"
	refused "evil.*$ending" $VMCTL image import "$T/evil/evil.$ending"
	$VMCTL image rm evil >/dev/null 2>&1
	: >"$T/evil/evil.$ending"
	refused 'evil' $VMCTL image import "$T/evil/evil.$ending"
	$VMCTL image rm evil >/dev/null 2>&1
done
# the daemon dies while one is read: the next one begins anew, and ends it
must qemu-img create -f raw "$T/big" 1G
for at in 0 200 400 600 800; do must qemu-io -f raw -c "write -P 7 ${at}M 64M" "$T/big"; done
must qemu-img convert -f raw -O vmdk "$T/big" "$T/big.vmdk"
$VMCTL image import "$T/big.vmdk" >"$T/out" 2>&1 &
importing() { [ "$($VMCTL -o json image info big | jq -r .state)" = checking ]; }
until_true 30 importing || fail "it is being read: $(cat "$T/out")"
kill_vmd
start_vmd
ready() { [ "$($VMCTL -o json image info big | jq -r .state)" = ready ]; }
until_true 40 ready || fail "it is ready at last: $($VMCTL -o json image info big) $($VMCTL -o json ops)"
must qemu-img compare -f raw -F qcow2 "$T/big" "$(file_of big)"
until_true 5 eval '! pgrep -f "qemu-nbd --read-only --format=.* /in"' || fail "no reader is left over"
stop_vmd
exit 0
