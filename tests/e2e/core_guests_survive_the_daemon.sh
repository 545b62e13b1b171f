#!/usr/bin/env bash
# serial
# kill -9 of the whole daemon, again and again, under running guests: none is lost, each is adopted with its own state, quickly.
# VMD_TEST_LONG=1: 50 guests and 200 kills; else 10 guests and 10 kills.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq
guests=10 kills=10
[ -z "${VMD_TEST_LONG:-}" ] || guests=50 kills=200
start_vmd
idle_kernel "$T/idle"
for i in $(seq "$guests"); do
	check "launch g$i" $VMCTL launch "g$i" --accel soft --memory 32M --kernel "$T/idle" --serial null >/dev/null 2>&1
done
check "pause g1" $VMCTL pause g1 >/dev/null 2>&1
facts() { $VMCTL -o json ls | jq -S '[(if type == "array" then .[] else .items[] end) | {name, state, pid, uuid}] | sort_by(.name)'; }
facts >"$T/before"
[ "$(jq length "$T/before")" -eq "$guests" ] || fail "$guests guests are listed"
worst=0
for k in $(seq "$kills"); do
	# every role at once, as a crash of the machine's service would be; by pid: priv and its two children roles
	roles=$(pgrep -P "$VMD_PID" -x vmd | tr '\n' ' ')
	# shellcheck disable=SC2086
	kill -KILL "$VMD_PID" $roles 2>/dev/null
	wait "$VMD_PID" 2>/dev/null
	t0=$(date +%s%N)
	start_vmd
	facts >"$T/after"
	ms=$((($(date +%s%N) - t0) / 1000000))
	[ $ms -le $worst ] || worst=$ms
	cmp -s "$T/before" "$T/after" || { diff "$T/before" "$T/after" | head; fail "after kill $k the guests are what they were"; }
done
echo "$guests guests, $kills kills, none lost; start to adopted at most $worst ms"
[ $worst -lt 2000 ] || fail "adoption took $worst ms"
check "an adopted guest obeys" $VMCTL resume g1 >/dev/null 2>&1
# kill -9 of a guest is a recorded state, and the others do not notice
pid=$($VMCTL -o json info g2 | jq .pid)
kill -KILL "$pid"
until_true 5 test "$(state_of g2)" != running || until_true 5 eval '[ "$(state_of g2)" != running ]' || fail "the death of g2 is noticed"
[ -n "$($VMCTL -o json info g2 | jq -r '.state_reason // empty')" ] || fail "the reason is recorded"
[ "$(state_of g3)" = running ] || fail "g3 runs on"
for i in $(seq "$guests"); do $VMCTL stop --force "g$i" >/dev/null 2>&1; done
[ -z "$(find "$RUN/guests" -name '*.sock')" ] || fail "no socket is left over"
find /sys/fs/cgroup -maxdepth 3 -type d -name "*$(basename "$T")*" 2>/dev/null | grep -q . && fail "no control group is left over"
exit 0
