#!/usr/bin/env bash
# A change reaches all that hangs on it, or nothing: names in other guests' ports, counts of networks, addresses, records of a create
# that fails half-way, revisions; a start that the restart policy owes survives the daemon.
. "$(dirname "$0")/../lib/e2e.sh"
in_own_netns "$@"
requires root jq curl gcc
start_vmd
idle_kernel "$T/idle"
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
get() { $VMCTL query GET "/v1/$1"; }
must $VMCTL net create lan --bridge vmdhold0 --cidr 10.99.3.1/24
must $VMCTL net create other --bridge vmdhold1 --cidr 10.99.4.1/24
must $VMCTL create a --memory 64M --net lan --serial log --serial pty
must $VMCTL create b --memory 64M --net lan --net lan --serial guest:a:serial1 --serial guest:aa:serial1

# a network knows how many are on it
[ "$(get networks/lan | jq .guests)" = 3 ] || fail "lan has 3 interfaces: $(get networks/lan)"
[ "$(get networks/other | jq .guests)" = 0 ] || fail "other has none: $(get networks/other)"

# a port that leads to a guest follows it
must $VMCTL rename a z
[ "$(get guests/b | jq -c '[.serials[].spec]')" = '["guest:z:serial1","guest:aa:serial1"]' ] || fail "a port follows a renamed guest: $(get guests/b)"
[ "$(get 'events?follow=false' >/dev/null; $VMCTL -o json events --follow=false | grep -c guest.renamed)" = 1 ] || fail "one rename is one event"
must $VMCTL --dry-run rename z y
$VMCTL events --follow=false >"$T/out" 2>&1
[ "$(grep -c guest.renamed "$T/out")" = 1 ] || fail "a dry rename is no event: $(grep renamed "$T/out")"

# a dry change of interfaces keeps the addresses; so does one that fails
mac=$(get guests/z | jq -r .nics[0].mac) ip=$(get guests/z | jq -r .nics[0].ip)
must $VMCTL --dry-run set z --net other
$VMCTL set z --net "lan,mac=$(get guests/b | jq -r .nics[1].mac)" >"$T/out" 2>&1 && fail "another guest's address is refused"
grep -q 'in use by guest "b"' "$T/out" || fail "its holder is named: $(cat "$T/out")"
$VMCTL create thief --memory 64M --net "lan,mac=$mac" >"$T/out" 2>&1 && fail "the address is still z's after a dry change"
$VMCTL create thief --memory 64M --net "lan,ip=$ip" >"$T/out" 2>&1 && fail "the IP address is still z's"
$VMCTL create thief --memory 64M --net "lan,mac=$(get guests/b | jq -r .nics[1].mac)" >"$T/out" 2>&1 && fail "b's address is still b's"
must $VMCTL set z --net other
[ "$(get networks/lan | jq .guests) $(get networks/other | jq .guests)" = '2 1' ] || fail "counts follow a change: $(get networks)"
must $VMCTL create heir --memory 64M --net "lan,mac=$mac,ip=$ip"

# one interface more, one less; what is refused or only tried leaves every address where it was
nics() { get "guests/$1" | jq -c '[.nics[].name]'; }
must $VMCTL create n --memory 64M --net lan
$VMCTL nic attach n lan --mac "$mac" >"$T/out" 2>&1 && fail "the address is heir's"
grep -q 'in use by guest "heir"' "$T/out" || fail "its holder is named: $(cat "$T/out")"
$VMCTL nic attach n nowhere >"$T/out" 2>&1 && fail "a network that is not there"
[ "$(nics n)" = '["net0"]' ] || fail "nothing came of it: $(nics n)"
must $VMCTL --dry-run nic attach n lan --ip 10.99.3.77
must $VMCTL nic attach n lan --ip 10.99.3.77
must $VMCTL nic attach n other --name uplink --mtu 1400
$VMCTL nic attach n lan --name uplink >"$T/out" 2>&1 && fail "a name that is taken"
[ "$(nics n)" = '["net0","net1","uplink"]' ] || fail "three interfaces: $(nics n)"
must $VMCTL nic detach n net0
$VMCTL nic detach n net0 >"$T/out" 2>&1 && fail "it is gone"
must $VMCTL nic attach n lan
[ "$(nics n)" = '["net1","uplink","net0"]' ] || fail "the first free name: $(nics n)"
$VMCTL create thief --memory 64M --net lan,ip=10.99.3.77 >"$T/out" 2>&1 && fail "the address of net1 is still n's"
must $VMCTL nic detach n net1
must $VMCTL create next --memory 64M --net lan,ip=10.99.3.77
must $VMCTL delete next --now
must $VMCTL delete n --now

# a create that fails half-way leaves nothing: no disk, no address, no guest, nobody else's disk taken
must $VMCTL disk create spare --size 16M
before=$(get disks | jq -S .)
$VMCTL create half --memory 64M --net lan,mac=52:54:00:77:77:77 --disk spare --disk size=16M --disk nosuchdisk >"$T/out" 2>&1 && fail "a disk that is not there is refused"
grep -q nosuchdisk "$T/out" || fail "it is named: $(cat "$T/out")"
[ "$(get disks | jq -S .)" = "$before" ] || fail "a failed create leaves no disk: $(get disks)"
$VMCTL info half >/dev/null 2>&1 && fail "a failed create leaves no guest"
must $VMCTL create whole --memory 64M --net lan,mac=52:54:00:77:77:77 --disk spare
[ "$(get disks/spare | jq -r .guest)" = whole ] || fail "the disk is whole's"
must $VMCTL disk detach spare

# names of disks do not collide
for i in 0 1 2; do must $VMCTL disk create "d$i" --size 16M && must $VMCTL disk attach "d$i" whole; done
must $VMCTL disk detach d1
must $VMCTL disk attach d1 whole
[ "$(get guests/whole | jq -c '[.disks[].name]|sort')" = '["disk0","disk1","disk2"]' ] || fail "each has a name of its own: $(get guests/whole | jq -c .disks)"

# If-Match holds for every kind of object
match() { # METHOD PATH BODY
	curl -sS -m 10 --unix-socket "$SOCK" -X "$1" -H 'Content-Type: application/json' -H 'If-Match: "99999"' ${3:+-d "$3"} -o "$T/out" -w '%{http_code}' "http://localhost/v1/$2"
}
while read -r method path body; do
	[ "$(match "$method" "$path" "$body")" = 412 ] || fail "$method $path with an old revision: $(cat "$T/out")"
done <<'W'
PATCH guests/z {"cpus":2}
DELETE guests/z
POST guests/z/start {}
POST guests/z/rename {"name":"q"}
DELETE disks/spare
POST disks/spare/resize {"size":33554432}
POST disks/spare/attach {"guest":"z"}
DELETE networks/other
W

# a start that the policy owes is not forgotten when the daemon dies before it is due
must $VMCTL launch loyal --accel soft --memory 64M --kernel "$T/idle" --restart always
crash() { kill -KILL "$(get guests/loyal | jq .pid)"; until_true 10 $VMCTL wait loyal --state crashed --timeout 1s || until_true 5 false; }
for i in 1 2; do
	must $VMCTL wait loyal --state running --timeout 20s
	crash
done
owed() { $VMCTL -o json events --follow=false | grep -q 'starts again in 2 s'; }
until_true 10 owed || fail "the second start is due in 2 s: $($VMCTL events --follow=false | tail -5)"
kill_vmd
start_vmd
must $VMCTL wait loyal --state running --timeout 20s
[ "$(get guests/loyal | jq .restarts)" -ge 2 ] || fail "info says how often: $(get guests/loyal)"
must $VMCTL stop --force loyal
kill_vmd
start_vmd
until_true 1 false
[ "$(get guests/loyal | jq -r .state)" = stopped ] || fail "one that was stopped by hand stays stopped"
stop_vmd
exit 0
