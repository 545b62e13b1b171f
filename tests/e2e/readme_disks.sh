#!/usr/bin/env bash
# serial
# The README's walk-through of disks, line by line as it stands there: each command succeeds, and what the comments say is so. The guest is
# a stock Debian kernel on the software CPU; what the README does "in the guest" is typed into its console.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq cpio qemu-img qemu-io nbdinfo python3
kernels=$TOP/.lab/kernels
[ -e "$kernels/cloud/done" ] || "$TOP/tests/lab/kernels" "$kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
mkdir "$T/here"
cd "$T/here" || exit 1
check "initrd" "$TOP/tests/lab/initrd" "$T/here/initrd.img" "$TOP/tests/lab/init.guest" "$kernels/cloud" virtio_pci virtio_blk virtio_net ext4 button
cp "$kernels/cloud/vmlinuz" vmlinuz
check "an image" qemu-img create -q -f qcow2 debian.qcow2 64M
check "with something in it" qemu-io -c 'write -P 0x64 0 4M' debian.qcow2 >/dev/null
start_vmd
cat >"$T/type.py" <<'PY'
import socket, sys
# type.py SOCKET COMMAND: into the guest's shell, waits for its end
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.settimeout(90)
got = b''
def until(what):
    global got
    while what not in got:
        more = s.recv(65536)
        if not more:
            sys.exit('the console ended: %r' % got)
        got += more
until(b'/ # ')
s.sendall((sys.argv[2] + ' && echo "DO""NE"\n').encode())
until(b'DONE')
PY
vmctl() { # the walk-through's own word; a guest that can be typed into
	local a=()
	for w; do
		case $w in
		"console=ttyS0") a+=("console=ttyS0 cryptomgr.notests=1 quiet do=shell") ;;
		/boot/*) a+=("$PWD/${w##*/}") ;;
		*) a+=("$w") ;;
		esac
	done
	[ "$1" != launch ] || a+=(--accel soft --memory 192M --serial unix:web.sock)
	$VMCTL "${a[@]}"
}
sed -n '/^<!-- disks -->/,/^$/p' "$TOP/README.md" | grep -v '^<!--\|^```\|^$' >"$T/lines"
[ "$(wc -l <"$T/lines")" -ge 15 ] || fail "the README has the walk-through: $(cat "$T/lines")"
file_of() { echo "$STATE/pools/default/$($VMCTL -o json disk info "$1" | jq -r '.file // (.name + "." + .format)')"; }
n=0
while read -r line <&3; do
	n=$((n + 1))
	case $line in
	"# in the guest: "*)
		timeout 100 python3 "$T/type.py" "$(find "$RUN" -name web.sock)" "${line#\# in the guest: }" >"$T/out" 2>&1 || fail "the guest: $line: $(cat "$T/out")"
		;;
	*) eval "$line" >"$T/out" 2>&1 || fail "README line $n: $line: $(cat "$T/out")" ;;
	esac
	case $line in
	*"backup web-root"*) [ "$(qemu-img dd -O raw bs=6 count=1 if="$(file_of web-spoilt)" of="$T/six" >/dev/null && head -c 6 "$T/six")" = spoilt ] || fail "the backup has what the guest wrote" ;;
	*"snapshot restore"*) qemu-io -r -c 'read -P 0x64 0 4M' "$(file_of web-root)" | grep -q 'verification failed' && fail "the disk is as it was" ;;
	esac
done 3<"$T/lines"
check "the copy holds what the image held" qemu-img compare -q debian.qcow2 copy.qcow2
check "it is sound" qemu-img check -q "$(file_of web-root)"
[ "$($VMCTL -o json disk ls | jq '[.[] | select(.state != "ready")] | length')" = 0 ] || fail "nothing is left busy"
stop_vmd
exit 0
