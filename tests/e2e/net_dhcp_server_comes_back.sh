#!/usr/bin/env bash
# Networks without a guest: what net create makes, a DHCP server that dies or hangs and is there again, an administrator's bridge that is
# left as it was, names and addresses refused with the reason, and nothing left behind.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
in_own_netns
requires root jq dnsmasq nft
start_vmd
refused() { # WHAT TEXT COMMAND...
	local what=$1 text=$2
	shift 2
	"$@" >"$T/out" 2>&1 && fail "$what is refused"
	grep -qi -- "$text" "$T/out" || fail "$what: the refusal names the reason ($text): $(cat "$T/out")"
}
server() { pgrep -f "dnsmasq.*--pid-file=$STATE/dhcp/lan/pid"; }
check "net create" quiet $VMCTL net create lan --cidr 10.77.0.1/24
bridge=$($VMCTL -o json query GET /v1/networks/lan | jq -r .bridge)
ip -o link show type bridge dev "$bridge" >/dev/null 2>&1 || fail "it makes its bridge: $bridge"
until_true 5 server || fail "a DHCP server runs"
first=$(server)
gave_up_root() { [ "$(stat -c %u "/proc/$first")" -ne 0 ]; }
until_true 5 gave_up_root || fail "the DHCP server gave up root"
other() { local s; s=$(server) && [ "$s" != "$first" ] && [ "$(wc -w <<<"$s")" -eq 1 ]; }
kill -KILL "$first"
until_true 10 other || fail "a DHCP server that was killed is started again"
grep -q 'network lan: dnsmasq ended by signal 9' "$T/vmd.log" || fail "and the log says so"
# the bridge has an address of its own, that does not follow its ports
address() { ip -o link show dev "$bridge" | grep -o 'link/ether [^ ]*'; }
mac=$(address)
ip tuntap add dev vlow mode tap && ip link set vlow address 02:00:00:00:00:01 master "$bridge" && ip link set vlow up || fail "ip tuntap add"
[ "$(address)" = "$mac" ] || fail "the bridge keeps its address: $mac, $(address)"
ip link del vlow
# taps that cannot be made: what should be /dev/net/tun is something else; the bridge has no port left
idle_kernel "$T/idle"
check "create" quiet $VMCTL create g --accel soft --memory 32M --kernel "$T/idle" --serial null --net lan
tap_failed() { # TEXT
	refused "a start without a tap" "$1" $VMCTL start g
	grep -q 'hint:' "$T/out" || fail "with the way out: $(cat "$T/out")"
	[ "$(state_of g)" = failed ] || fail "which is recorded: $(state_of g)"
	! ip -o link show type tun | grep -q ' vt[0-9a-f]*:' || fail "and no tap is left: $(ip -o link show type tun)"
	[ -z "$(find "$RUN/guests" -name '*.sock')" ] || fail "nor a process"
}
if [ -e /dev/net/tun ]; then
	mount --bind /dev/null /dev/net/tun || fail "mount --bind"
	tap_failed '/dev/net/tun'
	umount /dev/net/tun
fi
for i in {1..512}; do printf 'link add p%s master %s type veth peer name q%s\nlink set q%s master %s\n' "$i" "$bridge" "$i" "$i" "$bridge"; done >"$T/ports"
ip -batch "$T/ports" 2>/dev/null # the last ones find no room
tap_failed 'takes no more ports'
for i in {1..512}; do echo "link del p$i"; done >"$T/ports"
ip -batch "$T/ports" || fail "ip link del"
check "with a port free it starts" quiet $VMCTL start g
check "delete" quiet $VMCTL delete --now --force g
# a stuck one does not hold up the daemon
kill -STOP "$(server)"
nft list tables | grep -q vmd || fail "the NAT rules are there"
nft list ruleset | grep -q 'ip saddr 10.77.0.0/24.*masquerade' || fail "the network is masqueraded: $(nft list ruleset)"
check "net rm" quiet timeout 20 $VMCTL net rm lan
gone() { ! server && ! ip -o link show dev "$bridge" >/dev/null 2>&1; }
until_true 5 gone || fail "nothing of lan is left: $(server; ip -o link)"

# an administrator's bridge: used, and left alone
ip link add adminbr type bridge && ip addr add 10.78.0.1/24 dev adminbr && ip link set adminbr up || fail "ip link add"
before=$(ip -o addr show adminbr)
check "net create on a bridge that is there" quiet $VMCTL net create office --bridge adminbr
[ "$(ip -o addr show adminbr)" = "$before" ] || fail "it keeps its address: $(ip -o addr show adminbr)"
check "net rm" quiet $VMCTL net rm office
[ "$(ip -o addr show adminbr)" = "$before" ] || fail "it outlives the network"

# refusals, each with its reason
ip link add vdummy type dummy 2>/dev/null && refused "an interface that is no bridge" 'bridge' $VMCTL net create bad --bridge vdummy
ip link add vmbr-theirs type bridge || fail "ip link add"
refused "a bridge that another daemon made" 'not this daemon' $VMCTL net create theirs --cidr 10.80.0.1/24
ip -o link show vmbr-theirs >/dev/null || fail "it is left alone"
ip link del vmbr-theirs
refused "a bridge's name of 16 letters" 'bridge' $VMCTL net create bad --bridge abcdefghijklmnop
refused "a bridge's name with a slash" 'bridge' $VMCTL net create bad --bridge ../x
refused "a prefix of 33" 'cidr' $VMCTL net create bad --cidr 10.1.0.1/33
refused "a network that is not there" 'nosuch' $VMCTL net rm nosuch
refused "a name of 80 letters" 'name' $VMCTL net create "$(printf 'a%.0s' {1..80})" --cidr 10.79.0.1/24
$VMCTL -o json net ls | jq -e '[.. | .name? // empty] | map(select(. == "bad")) | length == 0' >/dev/null || fail "nothing half-made is listed: $($VMCTL net ls)"
[ -z "$(ip -o link show type bridge | grep -v adminbr)" ] || fail "no bridge is left: $(ip -o link)"

# over a restart of the daemon: the bridge stays, one server serves
check "net create" quiet $VMCTL net create lan --cidr 10.77.0.1/24
until_true 5 server || fail "a DHCP server runs"
first=$(server)
kill_vmd
ip -o link show dev "$bridge" >/dev/null 2>&1 || fail "the bridge outlives the daemon"
start_vmd
until_true 10 other || fail "one DHCP server, the new daemon's: $(server)"
check "net rm" quiet $VMCTL net rm lan
until_true 5 gone || fail "nothing is left: $(server; ip -o link)"
exit 0
