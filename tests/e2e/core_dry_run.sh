#!/usr/bin/env bash
# --dry-run: every verb that changes something checks it all and changes nothing: objects, files and processes are as before.
. "$(dirname "$0")/../lib/e2e.sh"
in_own_netns "$@"
requires root jq
start_vmd
idle_kernel "$T/idle"
world() {
	local k
	for k in guests disks images pools networks tokens; do $VMCTL query GET "/v1/$k" | jq -S 'del(.items[]? | .free, .size?, .allocated, .used, .provisioned, .overcommit, .volumes)'; done
	find "$STATE" -type f ! -name 'vmd.db*' ! -name '*.log' | sort
	pgrep -f "$RUN|vmd-guest" -P "$VMD_PID" | sort
}
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
must $VMCTL launch a --accel soft --memory 64M --kernel "$T/idle" --disk size=16M
must $VMCTL create b --memory 64M --kernel "$T/idle"
must $VMCTL create c --memory 64M --kernel "$T/idle"
must $VMCTL delete c
must $VMCTL disk create d --size 16M
must $VMCTL disk create e --backing d
must $VMCTL net create n --bridge vmddry0 --cidr 10.99.7.1/24
must $VMCTL token create t --role viewer
truncate -s 1M "$T/img"
must $VMCTL image import "$T/img" img --format raw
until_true 5 test "$($VMCTL -o json ops | jq 'map(select(.state == "running")) | length')" = 0
kernel=$($VMCTL image ls -q | grep ^kernel)
world >"$T/before"
n=0
dry() {
	$VMCTL --dry-run "$@" >"$T/out" 2>&1 || fail "--dry-run $*: $(cat "$T/out")"
	world >"$T/after"
	cmp -s "$T/before" "$T/after" || fail "--dry-run $* changed something: $(diff "$T/before" "$T/after" | head -20)"
	n=$((n + 1))
}
dry create x --memory 64M --kernel "$kernel" --disk size=1G
dry launch y --memory 64M --kernel "$kernel"
for v in stop restart reset pause; do dry $v a; done
dry start b
dry set b --memory 96M
dry rename b bb
dry nic attach b n
dry delete b
dry undelete c
dry debug nmi a
dry disk create f --size 1G
dry disk resize d 32M
dry disk attach d b
dry disk check d --repair all
dry disk map d
dry disk convert d g
dry disk commit e
dry disk rebase e
dry disk compare d e
dry disk rm e
dry net create m --bridge vmddry1 --cidr 10.99.8.1/24
dry net rm n
dry image rm img
dry pool create p --path "$T/pool"
dry token create t2 --role admin
dry token rm t
[ -e "$T/pool" ] && fail "a dry pool create made its directory"
ip link show vmddry1 2>/dev/null && fail "a dry net create made its bridge"
# and it checks: what would be refused is refused
$VMCTL --dry-run disk commit d >"$T/out" 2>&1 && fail "a dry commit with no parent is refused"
$VMCTL --dry-run delete a >"$T/out" 2>&1 && fail "a dry delete of a running guest is refused"
[ $n -ge 28 ] || fail "only $n verbs were tried"
must $VMCTL stop --force a
stop_vmd
exit 0
