#!/usr/bin/env bash
# Who may do what over the unix socket: the groups vmd-admin, vmd-operator and vmd-viewer, by the kernel's word alone.
# In a mount namespace of its own, with an /etc/group of its own, so that no group is made on the host.
if [ -z "${E2E_MNTNS:-}" ] && unshare -m true 2>/dev/null; then
	E2E_MNTNS=1 exec unshare -m --propagation private -- bash "$0" "$@"
fi
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq curl setpriv pgrep
[ -n "${E2E_MNTNS:-}" ] || skip "needs mount namespaces"
grep -v '^vmd-' /etc/group >"$T/group"
printf '%s\n' vmd-admin:x:70001: vmd-operator:x:70002: vmd-viewer:x:70003: >>"$T/group"
mount --bind "$T/group" /etc/group || skip "needs to mount over /etc/group"
start_vmd

as() { # GIDS METHOD PATH [BODY]: as uid 65534 with just these supplementary groups (or "-": none); status in $status
	local groups=(--clear-groups) body=()
	[ "$1" = - ] || groups=(--groups "$1")
	[ $# -lt 4 ] || body=(-H 'Content-Type: application/json' -d "$4")
	status=$(setpriv --reuid "${AS_UID:-65534}" --regid "${AS_GID:-65534}" "${groups[@]}" curl -sS -m 10 --unix-socket "$SOCK" "${body[@]}" \
		-X "$2" -w '\n%{http_code}' "http://localhost$3" 2>&1 | tee "$T/body" | tail -n 1)
}
expect() { # STATUS GIDS METHOD PATH [BODY]
	local want=$1
	shift
	as "$@"
	[ "$status" = "$want" ] || fail "groups $* give $want, not $status: $(cat "$T/body")"
}
code() { grep -q "\"code\":\"$1\"" "$T/body" || fail "the code is $1: $(cat "$T/body")"; }
A=70001 O=70002 V=70003
chmod 755 "$T" "$RUN"

# nobody's groups: only what is public, and the refusal says what to do
expect 200 - GET /v1/healthz
expect 403 - GET /v1/guests
code no-role
grep -q vmd-viewer "$T/body" || fail "the refusal names the groups: $(cat "$T/body")"
expect 403 1,2,3 GET /v1/guests
AS_UID=1999998 expect 403 - GET /v1/guests # the api role's own uid is worth nothing

# every row of the route table, as the OpenAPI document states it, asked by somebody one role too low
expect 200 - GET /v1/openapi.json
head -n -1 "$T/body" | jq -r '.paths | to_entries[] | .key as $p | .value | to_entries[] | select(.value["x-role"]) |
	[.key, $p, .value["x-role"], (if (.value.parameters // []) | any(.name == "ticket") then "ticket" else "-" end)] | @tsv' >"$T/routes"
[ "$(wc -l <"$T/routes")" -ge 50 ] || fail "the document names the role of each route: $(wc -l <"$T/routes")"
n=0
while IFS=$'\t' read -r method path role ticket; do
	[ "$ticket" = - ] || continue # its ticket speaks for it
	method=${method^^} path=$(sed 's/{[^}]*}/x/g' <<<"$path")
	case $role in
	viewer) low=- ;;
	operator) low=$V ;;
	admin) low=$V,$O ;;
	*) continue ;;
	esac
	expect 403 "$low" "$method" "$path"
	n=$((n + 1))
done <"$T/routes"
[ "$n" -ge 50 ] || fail "$n routes were asked"

# viewer looks, operator runs, admin does all; the highest of several groups counts, and the primary group too
expect 200 $V GET /v1/guests
expect 201 $O POST /v1/guests '{"name":"web","memory":"64M","accel":"soft"}'
expect 200 $V GET /v1/guests/web
expect 403 $V POST /v1/guests/web/start
code role-too-low
expect 403 $V DELETE /v1/guests/web
expect 403 $O POST /v1/tokens '{"name":"mine","role":"admin"}'
code role-too-low
expect 403 $O GET /v1/tokens
expect 403 $O POST /v1/networks '{"name":"n"}'
expect 201 $A POST /v1/tokens '{"name":"t","role":"viewer"}'
expect 403 $O DELETE /v1/tokens/t
expect 204 $V,$A,$O DELETE /v1/tokens/t
AS_GID=$A expect 200 - GET /v1/tokens
many=$(seq -s, 100000 101000)
expect 200 "$many,$V" GET /v1/guests
expect 403 "$many" GET /v1/guests

# vmctl says it in its exit code
setpriv --reuid 65534 --regid 65534 --groups $V $VMCTL delete web >"$T/out" 2>&1
[ $? -eq 5 ] || fail "denied is exit 5: $(cat "$T/out")"
setpriv --reuid 65534 --regid 65534 --groups $O $VMCTL delete --now web >"$T/out" 2>&1 || fail "an operator deletes: $(cat "$T/out")"

# an api role that dies comes back with the same groups
old=$(pgrep -P "$VMD_PID" -x vmd-api)
kill -KILL "$old"
up() { as $V GET /v1/guests; [ "$status" = 200 ]; }
check "viewers are served by the next api role" until_true 10 up
[ "$(pgrep -P "$VMD_PID" -x vmd-api)" != "$old" ] || fail "it is another process"
expect 403 $V POST /v1/guests '{"name":"web2"}'
exit 0
