#!/usr/bin/env bash
# serial
# Networks with guests on them: out by NAT and nobody in but by a forward; ports of the host lead to guests from outside, from the host
# and from other guests, over renames and restarts; two networks apart; a network without NAT, isolated; an administrator's bridge.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
in_own_netns
requires root gcc jq curl dnsmasq nft cpio python3 busybox
kernels=$TOP/.lab/kernels
[ -e "$kernels/cloud/done" ] || "$TOP/tests/lab/kernels" "$kernels" cloud >/dev/null 2>&1 || skip "needs the cloud kernel (apt-get download)"
refused() { # WHAT TEXT COMMAND...
	local what=$1 text=$2
	shift 2
	"$@" >"$T/out" 2>&1 && fail "$what is refused"
	grep -qi -- "$text" "$T/out" || fail "$what: the refusal says ($text): $(cat "$T/out")"
}
# a guest answers with its name, and fetches what it is asked to
cat >"$T/init" <<'I'
#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
export PATH=/bin
/bin/busybox --install -s /bin
for m in $(cat /mod/order); do insmod "/mod/$m"; done
for w in $(cat /proc/cmdline); do case $w in me=*) me=${w#me=} ;; eth1=*) eth1=${w#eth1=} ;; esac; done
ip link set lo up
ip link set eth0 up
printf '#!/bin/sh\n[ "$1" = bound ] || exit 0\nip addr add "$ip/$mask" dev eth0\n[ -z "$router" ] || ip route add default via "$router"\necho "GUEST-IP $ip" >/dev/console\n' >/got
chmod 755 /got
udhcpc -i eth0 -s /got -q -t 20 -T 1 >/dev/null 2>&1
[ -z "$eth1" ] || { ip link set eth1 up; ip addr add "$eth1" dev eth1; }
mkdir -p /www/cgi-bin
echo "this is $me" >/www/index.html
printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n"\ntimeout 2 wget -q -O - "$QUERY_STRING" || echo unreachable\n' >/www/cgi-bin/get
chmod 755 /www/cgi-bin/get
httpd -p 80 -h /www
udpecho 53 &
echo GUEST-SERVES
while :; do sleep 3600; done
I
cat >"$T/udpecho.c" <<'C'
#include <arpa/inet.h>
#include <stdlib.h>
int main(int argc, char **argv)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	char b[2048];

	for (int r = bind(fd, (void *)&a, sizeof(a)); r >= 0;) {
		socklen_t len = sizeof(a);

		r = recvfrom(fd, b, sizeof(b), 0, (void *)&a, &len);
		sendto(fd, b, r, 0, (void *)&a, len);
	}
}
C
check "udpecho" gcc -O -static -o "$T/udpecho" "$T/udpecho.c"
check "initrd" env EXTRA="$T/udpecho" "$TOP/tests/lab/initrd" "$T/initrd" "$T/init" "$kernels/cloud" virtio_pci virtio_net
# the world outside: a namespace behind this one's default route, with a page of its own
unshare -n -- sh -c 'exec sleep 600' &
world=$!
HELPERS="${HELPERS:-} $world"
apart() { [ "$(readlink "/proc/$world/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
until_true 5 apart || fail "a second namespace"
outside() { nsenter -t "$world" -n "$@"; }
ip link add up0 type veth peer name up1 && ip link set up1 netns "$world" || fail "veth"
ip addr add 203.0.113.1/24 dev up0 && ip link set up0 up && outside ip addr add 203.0.113.2/24 dev up1 && outside ip link set up1 up &&
	ip route add default via 203.0.113.2 && outside ip route add 10.0.0.0/8 via 203.0.113.1 || fail "addresses"
mkdir "$T/www" && echo "this is the world" >"$T/www/index.html"
# http.server as it comes asks the DNS for its own name before it listens, which takes as long as the DNS is away
(cd "$T/www" && exec nsenter -t "$world" -n python3 -uc 'import http.server as s, socket
socket.getfqdn = lambda name="": name
s.test(s.SimpleHTTPRequestHandler, port=8000, bind="203.0.113.2")') >"$T/world.log" 2>&1 &
HELPERS="$HELPERS $!"
answers() { outside curl -s --max-time 2 http://203.0.113.2:8000/ >/dev/null; }
outside ip link set lo up
until_true 20 answers || fail "the page of the world outside: $(cat "$T/world.log")"
ip link add adminbr type bridge && ip addr add 10.78.0.1/24 dev adminbr && ip link set adminbr up || fail "ip link add"

start_vmd
check "net create" quiet $VMCTL net create lan --cidr 10.77.0.1/24
check "net create without NAT" quiet $VMCTL net create island --cidr 10.88.0.1/24 --no-nat --isolated
check "net create on a bridge that is there" quiet $VMCTL net create office --bridge adminbr
boot() { # NAME FLAG...
	local name=$1 more=$2
	shift 2
	quiet $VMCTL launch "$name" --accel soft --memory 128M --kernel "$kernels/cloud/vmlinux" --initrd "$T/initrd" \
		--cmdline "console=ttyS0 quiet cryptomgr.notests=1 me=$name $more" --serial log "$@"
}
log_of() { echo "$STATE/logs/$($VMCTL -o json info "$1" | jq -r .uuid).serial0.log"; }
ip_of() { $VMCTL -o json info "$1" | jq -r '.nics[0].ip'; }
serves() { grep -aq GUEST-SERVES "$(log_of "$1")"; }
up() { until_true 50 serves "$1" || { tail -5 "$(log_of "$1")" >&2; fail "$1 serves within 50 s"; }; }
check "launch a" boot a '' --net lan
check "launch b" boot b '' --net lan,ip=10.77.0.50
check "launch c" boot c '' --net island
check "launch d" boot d eth1=10.78.0.9/24 --net island --net office
for g in a b c d; do up $g; done
a=$(ip_of a) b=$(ip_of b) c=$(ip_of c) d=$(ip_of d)
grep -aq "GUEST-IP 10.77.0.50" "$(log_of b)" || fail "b has the address that it was given"
page() { curl -s --max-time 4 "$1"; }
from() { page "http://$1/cgi-bin/get?$2"; } # GUEST-ADDRESS URL
is() { # WHAT WANTED COMMAND...
	local what=$1 want=$2 got
	shift 2
	got=$("$@") || true
	[ "$got" = "$want" ] || fail "$what: wanted \"$want\", got \"$got\": $(nft list ruleset)"
}

# out by NAT, under the host's address; nobody in
is "a reaches the world" "this is the world" from "$a" http://203.0.113.2:8000/
grep -q '^203.0.113.1 ' "$T/world.log" || fail "it comes from the host's address: $(cat "$T/world.log")"
is "the world does not reach a" "" outside curl -s --max-time 2 "http://$a/"
is "b reaches a on their bridge" "this is a" from "$b" "http://$a/"
# without NAT: the host only; isolated: not one another, neither by the bridge nor by way of the host
is "the host reaches c" "this is c" page "http://$c/"
is "c does not reach the world" unreachable from "$c" http://203.0.113.2:8000/
is "c does not reach another network's guest" unreachable from "$c" "http://$a/"
is "nor that one c" unreachable from "$a" "http://$c/"
is "c does not reach d, isolated as they are" unreachable from "$c" "http://$d/"
is "on an administrator's bridge d is reached" "this is d" page http://10.78.0.9/
$VMCTL -o json net ls | jq -e 'map(select(.name == "lan"))[0].state == "up"' >/dev/null || fail "lan is up: $($VMCTL -o json net ls)"

# ports of the host
check "forward add" quiet $VMCTL forward add a 8080:80
is "from outside" "this is a" outside curl -s --max-time 5 http://203.0.113.1:8080/
is "from the host by 127.0.0.1" "this is a" page http://127.0.0.1:8080/
is "from the host by its address" "this is a" page http://203.0.113.1:8080/
is "from a guest of the same network" "this is a" from "$b" http://203.0.113.1:8080/
check "forward add of one address, udp" quiet $VMCTL forward add b 203.0.113.1:5353:53/udp --name dns
nft list ruleset | grep -q 'ip daddr 203.0.113.1 udp dport 5353 dnat to 10.77.0.50:53' || fail "the rule is there: $(nft list ruleset)"
said=$(outside timeout 20 python3 -c 'import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
s.connect(("203.0.113.1", 5353))
for i in range(15):
    s.send(b"who goes there")
    try:
        print(s.recv(100).decode())
        break
    except OSError: pass')
[ "$said" = 'who goes there' ] || fail "a datagram from outside is answered by the guest: $said"
$VMCTL forward ls | grep -q 'tcp-8080.* a .*8080' || fail "it is listed: $($VMCTL forward ls)"
python3 -m http.server 9000 >/dev/null 2>&1 &
HELPERS="$HELPERS $!"
until_true 10 curl -s http://127.0.0.1:9000/ || fail "a service of the host"
refused "a port that a service of the host has" 'service of the host has it' $VMCTL forward add a 9000:80
refused "a port that leads to a guest" 'leads to guest "a".*' $VMCTL forward add b 8080 80
refused "an address that is not the host's" 'not an address of this host' $VMCTL forward add a 192.0.2.77:8081:80
refused "a guest that is not there" 'no guest is named' $VMCTL forward add aa 8082:80
refused "port 70000" 'host_port' $VMCTL forward add a 70000:80
refused "a guest without an address" 'no address' $VMCTL forward add d 8083:80 --net office
refused "the host's service on a port that leads to a guest" 'in use' python3 -m http.server 8080
[ "$($VMCTL -o json forward ls | jq length)" = 2 ] || fail "nothing half-made is listed: $($VMCTL forward ls)"
# over a rename, the death of core and of the whole daemon
check "stop" quiet $VMCTL stop --force b
check "rename" quiet $VMCTL rename b bee
[ "$($VMCTL -o json forward info dns | jq -r .guest)" = bee ] || fail "it follows a rename: $($VMCTL forward ls)"
still() { [ "$(page http://127.0.0.1:8080/)" = "this is a" ] && [ "$($VMCTL -o json forward info tcp-8080 | jq -r .state)" = up ]; }
kill -KILL "$(pgrep -P "$VMD_PID" -f role=core)"
until_true 10 still || fail "it leads there with a new core: $($VMCTL forward ls)"
kill_vmd
is "it leads there without a daemon" "this is a" page http://127.0.0.1:8080/
start_vmd
until_true 10 still || fail "it leads there with a new daemon: $($VMCTL forward ls)"
until_true 10 grep -q ' 10.77.0.1\|,10.77.0.2' "$STATE/dhcp/lan/hosts" || fail "a running guest's fixed lease is told again: $(cat "$STATE/dhcp/lan/hosts")"
# the trash keeps it, and opens nothing; an address is free at once when its guest is gone
check "delete" quiet $VMCTL delete bee
[ "$($VMCTL -o json forward info dns | jq -r .state)" = down ] || fail "a guest in the trash gets nothing: $($VMCTL forward ls)"
nft list ruleset | grep -q 5353 && fail "no rule leads to it"
check "undelete" quiet $VMCTL undelete bee
until_true 5 sh -c 'nft list ruleset | grep -q 5353' || fail "back with its guest: $(nft list ruleset)"
check "delete for good" quiet $VMCTL delete --now bee
[ "$($VMCTL -o json forward ls | jq length)" = 1 ] || fail "its forward went with it: $($VMCTL forward ls)"
check "launch e with its address" boot e '' --net lan,ip=10.77.0.50
up e
grep -aq "GUEST-IP 10.77.0.50" "$(log_of e)" || fail "e has the address of one that was deleted: $(tail -3 "$(log_of e)")"
check "forward rm" quiet $VMCTL forward rm tcp-8080
is "it leads nowhere" "" page http://127.0.0.1:8080/
nft list ruleset | grep -q 8080 && fail "no rule is left"
for g in a c d e; do check "delete $g" quiet $VMCTL delete --now --force $g; done
for n in lan island office; do check "net rm" quiet $VMCTL net rm $n; done
gone() { ! ip -o link | grep -qE 'vt|vmbr' && [ -z "$(nft list tables)" ] && ! pgrep -f "dnsmasq.*$T" >/dev/null && [ -z "$(ls "$STATE/dhcp")" ]; }
until_true 5 gone || fail "nothing is left: $(ip -o link; nft list tables; ls "$STATE/dhcp")"
exit 0
