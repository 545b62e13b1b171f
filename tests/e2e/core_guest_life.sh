#!/usr/bin/env bash
# A guest's life through vmctl and REST: launch, pause, resume, stop, delete, undelete; and the errors on the way.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq curl
start_vmd
idle_kernel "$T/idle"
launch() { $VMCTL launch "$@" --accel soft --memory 64M --kernel "$T/idle" --serial log; }

check "launch" launch a >"$T/out" 2>&1
[ "$(state_of a)" = running ] || fail "a runs"
until_true 5 grep -aq idle "$STATE"/logs/*.serial0.log || fail "the guest's output is in its log"
launch a >"$T/out" 2>&1 && fail "a second guest of the same name is refused"
[ $? -eq 0 ] || grep -q 'a' "$T/out" || fail "the refusal names the guest: $(cat "$T/out")"
check "pause" $VMCTL pause a >/dev/null 2>&1
[ "$(state_of a)" = paused ] || fail "a is paused"
check "resume" $VMCTL resume a >/dev/null 2>&1
[ "$(state_of a)" = running ] || fail "a runs again"
pid=$($VMCTL -o json info a | jq .pid)
check "stop" $VMCTL stop --force a >/dev/null 2>&1
[ "$(state_of a)" = stopped ] || fail "a is stopped"
kill -0 "$pid" 2>/dev/null && fail "its process is gone"
check "start" $VMCTL start a >/dev/null 2>&1
$VMCTL delete a >"$T/out" 2>&1 && fail "a running guest is not deleted"
check "stop again" $VMCTL stop --force a >/dev/null 2>&1
check "delete" $VMCTL delete a >/dev/null 2>&1
[ -z "$($VMCTL ls -q)" ] || fail "a deleted guest is not listed"
check "undelete" $VMCTL undelete a >/dev/null 2>&1
[ "$(state_of a)" = stopped ] || fail "a is back"
check "delete for good" $VMCTL delete --now a >/dev/null 2>&1
$VMCTL undelete a >"$T/out" 2>&1 && fail "what was deleted at once does not come back"

# a guest in the trash keeps its disks, whatever a newer one of its name does
check "a guest with a disk" $VMCTL create t --memory 64M --kernel "$T/idle" --accel soft --disk size=8M >/dev/null 2>&1
check "into the trash" $VMCTL delete t >/dev/null 2>&1
check "another of its name" $VMCTL create t --memory 64M --kernel "$T/idle" --accel soft >/dev/null 2>&1
check "deleted for good" $VMCTL delete --now t >/dev/null 2>&1
check "undelete the first" $VMCTL undelete t >/dev/null 2>&1
[ "$($VMCTL -o json disk ls | jq length)" = 1 ] || fail "its disk is still there: $($VMCTL disk ls)"
check "and it starts" $VMCTL start t >/dev/null 2>&1
check "stop it" $VMCTL stop --force t >/dev/null 2>&1
check "delete it for good" $VMCTL delete --now t >/dev/null 2>&1
[ "$($VMCTL -o json disk ls | jq length)" = 0 ] || fail "its disk goes with it: $($VMCTL disk ls)"

# errors that a person can act on, and their exit codes
$VMCTL info nobody >"$T/out" 2>&1
[ $? -eq 3 ] || fail "an unknown guest is exit 3: $(cat "$T/out")"
$VMCTL strat a >"$T/out" 2>&1
[ $? -eq 2 ] || fail "an unknown verb is exit 2"
grep -q start "$T/out" || fail "an unknown verb brings a suggestion: $(cat "$T/out")"
$VMCTL destroy a >"$T/out" 2>&1 && fail "destroy is refused"
echo 'not a kernel' >"$T/junk"
$VMCTL launch b --accel soft --memory 64M --kernel "$T/junk" >"$T/out" 2>&1 && fail "a text file is no kernel"
grep -qi kernel "$T/out" || fail "the error says what is wrong: $(cat "$T/out")"
$VMCTL launch c --accel soft --memory 1M --kernel "$T/idle" >"$T/out" 2>&1 && fail "1 MiB is too little memory"
$VMCTL launch d --accel soft --memory 64M --kernel "$T/none" >"$T/out" 2>&1 && fail "a missing kernel file"
grep -q none "$T/out" || fail "the missing file is named: $(cat "$T/out")"
curl -s --unix-socket "$SOCK" -d '{"name":"e","memroy":1}' http://localhost/v1/guests >"$T/out"
jq -e '.status == 400 and (.detail + .hint | test("memory"))' "$T/out" >/dev/null || fail "an unknown field brings a suggestion: $(cat "$T/out")"
[ "$(pgrep -cf "vmd-guest --listen" -P "$VMD_PID")" = 0 ] || fail "no guest process is left over"
stop_vmd
exit 0
