#!/usr/bin/env bash
# vmd --user: an ordinary user, no root anywhere: state and sockets under the user's own directories, a guest in a jail made of user
# namespaces, its log, and clear words for what needs root.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq setpriv
idle_kernel "$T/idle"
mkdir "$T/home" "$T/run" "$T/bin"
cp "$BUILD"/{vmd,vmd-guest,vmd-image,vmctl} "$T/bin/"
chmod -R a+rX "$T/bin" "$T/idle"
chown 12345:12345 "$T/home" "$T/run"
chmod 700 "$T/run"
as_user() { setpriv --reuid 12345 --regid 12345 --clear-groups env -i HOME="$T/home" XDG_RUNTIME_DIR="$T/run" PATH=/usr/bin:/bin NO_COLOR=1 "$@"; }
vmctl() { as_user "$T/bin/vmctl" "$@" >"$T/out" 2>&1; }
as_user unshare -U true 2>/dev/null || skip "needs user namespaces for ordinary users"
RUN=$T/run/vmd
as_user "$T/bin/vmd" --user --foreground >"$T/vmd.log" 2>&1 </dev/null &
VMD_PID=$!
until_true 20 vmctl query GET /v1/healthz || fail "the daemon did not answer within 20 s"
[ -d "$T/home/.local/state/vmd" ] || fail "its state lies under the user's home"
vmctl launch a --memory 64M --kernel "$T/idle" --serial log || fail "launch: $(cat "$T/out")"
said() { vmctl logs a && grep -q idle "$T/out"; }
until_true 10 said || fail "the guest's log: $(cat "$T/out")"
vmctl -o json info a || fail "info: $(cat "$T/out")"
jq -e '.state == "running" and (.jail | test("seccomp") and test("pid") and test("mount"))' "$T/out" >/dev/null || fail "it runs in its jail: $(cat "$T/out")"
pid=$(jq .pid "$T/out")
[ "$(stat -c %u "/proc/$pid")" = 12345 ] || fail "its process is the user's"
vmctl doctor || fail "doctor: $(cat "$T/out")"
grep -q rootless "$T/out" || fail "doctor says that it is rootless: $(cat "$T/out")"
vmctl net create n --bridge vmdnone0 --cidr 10.96.0.1/24 && fail "a rootless daemon makes no bridge"
grep -q 'run vmd as root' "$T/out" || fail "the refusal says the way out: $(cat "$T/out")"
# the guest outlives this daemon too
kill_vmd
as_user "$T/bin/vmd" --user --foreground >>"$T/vmd.log" 2>&1 </dev/null &
VMD_PID=$!
adopted() { vmctl -o json info a && [ "$(jq -r '"\(.state) \(.pid)"' "$T/out")" = "running $pid" ]; }
until_true 20 adopted || fail "adopted after kill -9: $(cat "$T/out")"
vmctl stop --force a || fail "stop: $(cat "$T/out")"
stop_vmd
exit 0
