#!/usr/bin/env bash
# A disk over NBD: any client reads it, writes only where it may, nothing else uses the disk meanwhile; what was written is there
# afterwards; an export ends by unexport, by cancelling, and with the daemon.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq nbdinfo qemu-img qemu-io
start_vmd
idle_kernel "$T/idle"
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
must $VMCTL disk create base --size 16M
uri=$($VMCTL disk export base --writable) || fail "export: $uri"
case $uri in nbd+unix:///?socket="$RUN"/nbd/*.sock) ;; *) fail "export prints a URI: $uri" ;; esac
sock=${uri#*socket=}
[ "$(stat -c '%a %u' "$sock")" = '600 0' ] || fail "only root may connect: $(stat -c '%a %u' "$sock")"
must qemu-io -f raw -c 'write -P 0x5a 1M 1M' -c flush "$uri"
[ "$(nbdinfo --size "$uri")" = 16777216 ] || fail "nbdinfo tells its size"
must nbdinfo --list "$uri"
grep -q 'default/base' "$T/out" || fail "the export has the disk's name: $(cat "$T/out")"
[ "$($VMCTL -o json disk info base | jq -r .export)" = "$uri" ] || fail "info says where it is"
$VMCTL disk export base >"$T/out" 2>&1 && fail "a disk is exported once"
grep -q unexport "$T/out" || fail "the way out is named: $(cat "$T/out")"
must $VMCTL create g --memory 64M --kernel "$T/idle"
$VMCTL disk attach base g >"$T/out" 2>&1 && fail "an exported disk is given to nobody"
$VMCTL disk check base >"$T/out" 2>&1 && fail "nor checked"
$VMCTL disk rm base >"$T/out" 2>&1 && fail "nor removed"
must $VMCTL disk unexport base
[ -e "$sock" ] && until_true 5 sh -c "[ ! -e '$sock' ]" && [ -e "$sock" ] && fail "its socket goes"
[ "$($VMCTL -o json disk info base | jq -r '.state, .export' | paste -sd' ')" = 'ready null' ] || fail "the disk is free again"
$VMCTL disk unexport base >"$T/out" 2>&1 && fail "what is not exported cannot be ended"
[ $? -eq 4 ] || [ "$(grep -c 'not exported' "$T/out")" = 1 ] || fail "and that is said: $(cat "$T/out")"

# an overlay, read only: its whole chain is served
must $VMCTL disk create top --backing base
uri=$($VMCTL -q disk export top) || fail "export of an overlay: $uri"
must qemu-io -r -f raw -c 'read -P 0x5a 1M 1M' -c 'read -P 0 0 1M' "$uri"
qemu-io -f raw -c 'write 0 4k' "$uri" >"$T/out" 2>&1 && fail "a read-only export takes no write"
nbdinfo --map "$uri" >"$T/out" 2>&1 || fail "nbdinfo --map: $(cat "$T/out")"
must qemu-img convert -O qcow2 "$uri" "$T/copy.qcow2"
must qemu-img compare -f raw -F qcow2 "$uri" "$T/copy.qcow2"
# its operation is listed, and cancelling it ends it
op=$($VMCTL -o json ops | jq -r '.[] | select(.verb == "disk-export" and .state == "running") | .id')
must $VMCTL ops cancel "$op"
over() { [ "$($VMCTL -o json disk info top | jq -r .state)" = ready ]; }
until_true 10 over || fail "cancelled, it ends"
qemu-img info "$uri" >/dev/null 2>&1 && fail "nobody answers there any more"

# with the daemon it ends too, in order or not
uri=$($VMCTL -q disk export top) || fail "export: $uri"
kill_vmd
start_vmd
until_true 10 over || fail "a daemon that died leaves no disk busy: $($VMCTL -o json disk info top)"
[ "$($VMCTL -o json disk info top | jq -r .export)" = null ] || fail "and no address"
until_true 5 sh -c "[ -z \"\$(ls '$RUN/nbd')\" ]" || fail "and no socket: $(ls "$RUN/nbd")"
gone() { ! qemu-img info "$uri"; }
until_true 5 gone || fail "and nobody serving"

# a damaged image: the error names it, and the disk is free
file=$(find "$STATE" -name 'top.qcow2')
must qemu-img check "$file"
printf '\377\377\377\377\377\377\377\377' | dd of="$file" bs=1 seek=40 conv=notrunc status=none
$VMCTL disk export top >"$T/out" 2>&1 && fail "a damaged image is not served"
grep -q top "$T/out" || fail "it is named: $(cat "$T/out")"
until_true 5 over || fail "and free"
stop_vmd
exit 0
