#!/usr/bin/env bash
# serial
# kill -9 of the whole daemon at each moment of a guest's restart: the restart is finished afterwards, and the guest is stopped once, not twice.
# The new process speaks slowly (each message 40 ms late, by strace), so that the moment when it runs and has not said so is met.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq curl strace
start_vmd
idle_kernel "$T/idle"
check "launch" quiet $VMCTL launch a --accel soft --memory 32M --kernel "$T/idle" --serial null
get() { curl -sf --unix-socket "$SOCK" "http://localhost/v1/$1"; }
done_with() { case $(get "operations/$op" | jq -r .state) in queued | running) return 1 ;; esac; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }
# what priv starts from now on is slow
slow() {
	strace -f -qq -o /dev/null -e trace=sendmsg -e inject=sendmsg:delay_enter=40000 -p "$VMD_PID" 2>"$T/strace" &
	HELPERS="${HELPERS:-} $!"
	until_true 5 grep -q '^TracerPid:.*[1-9]' "/proc/$VMD_PID/status" || skip "needs ptrace: $(cat "$T/strace")"
}
slow
# how long a restart takes here: the moments lie in it
t0=$(now_ms)
check "restart" quiet $VMCTL restart --force a
span=$(($(now_ms) - t0 + 20))
for k in {0..15}; do
	last=$($VMCTL -o json events --follow=false | jq -s 'map(.id // .seq // 0 | tonumber) | max')
	pid=$(get guests/a | jq .pid)
	op=$(curl -sf --unix-socket "$SOCK" -X POST -H 'Content-Type: application/json' -d '{"force":true}' http://localhost/v1/guests/a/restart | jq -r .id)
	t0=$(now_ms)
	while [ $(($(now_ms) - t0)) -lt $((span * k / 16)) ]; do :; done
	roles=$(pgrep -P "$VMD_PID" -x vmd | tr '\n' ' ')
	# shellcheck disable=SC2086
	kill -KILL "$VMD_PID" $roles 2>/dev/null
	wait "$VMD_PID" 2>/dev/null
	start_vmd
	until_true 20 done_with || fail "round $k: the restart ends: $(get "operations/$op")"
	[ "$(get "operations/$op" | jq -r .state)" = succeeded ] || fail "round $k: the restart is done: $(get "operations/$op")"
	[ "$(state_of a)" = running ] || fail "round $k: the guest runs: $(state_of a)"
	[ "$(get guests/a | jq .pid)" != "$pid" ] || fail "round $k: in a new process"
	stops=$($VMCTL -o json events --follow=false --since "$last" --name a | grep -c '"guest.stopping"')
	[ "$stops" -le 1 ] || fail "round $k: it was stopped $stops times: $($VMCTL events --follow=false --since "$last" --name a)"
	slow
done
check "stop" quiet $VMCTL stop --force a
