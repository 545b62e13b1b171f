#!/usr/bin/env bash
# serial
# A stock Debian kernel on the software CPU: a disk over an image, an address by DHCP from the network's own server, a page over HTTP;
# afterwards nothing is left: no tap, bridge, table, server or process.
. "$(dirname "$0")/../lib/e2e.sh"
in_own_netns
requires root jq curl dnsmasq nft cpio qemu-img
kernels=$TOP/.lab/kernels
[ -e "$kernels/cloud/done" ] || "$TOP/tests/lab/kernels" "$kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
check "initrd" "$TOP/tests/lab/initrd" "$T/initrd" "$TOP/tests/lab/init.guest" "$kernels/cloud" virtio_pci virtio_blk virtio_net ext4 button
start_vmd
check "net create" $VMCTL net create lan --cidr 10.77.0.1/24 >/dev/null 2>&1
truncate -s 32M "$T/site.raw"
check "image import" $VMCTL image import "$T/site.raw" site --format raw >/dev/null 2>&1
check "launch" $VMCTL launch web --accel soft --memory 192M --kernel "$kernels/cloud/vmlinuz" --initrd "$T/initrd" --image site --net lan \
	--cmdline 'console=ttyS0 quiet cryptomgr.notests=1 do=page' --serial log >/dev/null 2>&1
until_true 60 grep -aq GUEST-SERVES "$STATE"/logs/*.serial0.log || { tail -5 "$STATE"/logs/*.serial0.log; fail "the guest serves within 60 s"; }
ip=$(sed -n 's/.*GUEST-IP \([0-9.]*\).*/\1/p' "$STATE"/logs/*.serial0.log | head -1)
[ -n "$ip" ] || fail "the guest got an address by DHCP"
want=$($VMCTL -o json info web | jq -r '.nics[0].ip')
[ "$ip" = "$want" ] || fail "the address is the one on record: $ip, $want"
case $(curl -s --max-time 10 "http://$ip/") in 'hello from a guest'*) ;; *) fail "the page comes from $ip" ;; esac
$VMCTL leases lan 2>/dev/null | grep -q "$ip" || $VMCTL net leases lan 2>/dev/null | grep -q "$ip" || fail "the lease is listed"
$VMCTL net rm lan >"$T/out" 2>&1 && fail "a network in use is not removed"
check "stop" $VMCTL stop --force web >/dev/null 2>&1
qemu-img check -q "$(ls "$STATE"/pools/default/web-*.qcow2)" || fail "qemu-img finds the disk clean"
check "delete" $VMCTL delete --now web >/dev/null 2>&1
[ -z "$(find "$STATE/pools/default" -name 'web-*')" ] || fail "its disk went with it"
check "net rm" $VMCTL net rm lan >/dev/null 2>&1
gone() { ! ip -o link | grep -qE 'vt|vmbr' && [ -z "$(nft list tables)" ] && ! pgrep -f "dnsmasq.*$T" >/dev/null; }
until_true 5 gone || fail "no tap, bridge, nftables table or dnsmasq is left: $(ip -o link; nft list tables; pgrep -af "dnsmasq.*$T")"
exit 0
