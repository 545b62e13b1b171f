#!/usr/bin/env bash
# The API over TLS 1.3, and who may do what there: certificates, tokens, roles; what a hostile client tries; the audit trail.
. "$(dirname "$0")/../lib/e2e.sh"
. "$(dirname "$0")/../lib/pki.sh"
requires root jq curl openssl sqlite3 gcc
pki_make
P=$T/pki
pki_cert alice alice clientAuth
pki_cert bob 'bob the builder' clientAuth
pki_cert eve eve clientAuth other
pki_cert carol carol clientAuth
TLS_SET=(--set listen=127.0.0.1:0 --set "tls_cert=$P/server.pem" --set "tls_key=$P/server.key" --set "tls_ca=$P/ca.pem"
	--set 'tls_clients=alice:admin, bob the builder:operator' --set host_allow=vm.example.org --set max_upload=1G)

# ---- errors of the set-up name key, file, cause and way out, and the daemon does not start ----
refused() { # TEXT SETTING...: vmd does not start, and says TEXT
	local text=$1 s args=()
	shift
	for s; do args+=(--set "$s"); done
	timeout 10 "$BUILD/vmd" --state "$T/none" --run "$T/none" "${args[@]}" >"$T/out" 2>&1
	[ $? -ne 124 ] || fail "vmd starts with $*"
	grep -q -- "$text" "$T/out" || fail "vmd with $* does not say \"$text\": $(cat "$T/out")"
}
refused 'listen needs tls_cert and tls_key' listen=127.0.0.1:0
refused "tls_cert: $T/gone: No such file" listen=127.0.0.1:0 "tls_cert=$T/gone" "tls_key=$P/server.key"
refused 'does not match\|do not match\|key.*mismatch\|certificate and the given key' listen=127.0.0.1:0 "tls_cert=$P/server.pem" "tls_key=$P/alice.key"
refused "tls_ca: $P/log holds no PEM text" listen=127.0.0.1:0 "tls_cert=$P/server.pem" "tls_key=$P/server.key" "tls_ca=$P/log"
refused 'is not ADDRESS:PORT; as 0.0.0.0:8443' listen=example.org:8443 "tls_cert=$P/server.pem" "tls_key=$P/server.key"
refused 'tls_clients: "alice=admin" is not of the form' tls_clients=alice=admin "tls_ca=$P/ca.pem"
refused 'tls_client_role: "root" is not one of' tls_client_role=root
"$BUILD/vmd" --check-config "${TLS_SET[@]}" >"$T/out" 2>&1 || fail "--check-config takes good settings: $(cat "$T/out")"

start_vmd
ss -ltnpH 2>/dev/null | grep -q "pid=$VMD_PID," && fail "TCP is off unless it is asked for"
stop_vmd
: >"$T/vmd.log"
start_vmd "${TLS_SET[@]}"
A=$(sed -n 's/.*also listens on \([^ ]*\) .*/\1/p' "$T/vmd.log")
U=https://$A
[ -n "$A" ] || fail "the log says where TLS is"

# ---- who is who ----
ask() { # CREDENTIALS METHOD PATH [BODY]: status in $status, body in $T/body
	local who=() m=$2 p=$3 body=()
	case $1 in
	none) ;;
	token:*) who=(-H "Authorization: Bearer ${1#token:}") ;;
	*) who=(--cert "$P/$1.pem" --key "$P/$1.key") ;;
	esac
	[ $# -lt 4 ] || body=(-H 'Content-Type: application/json' -d "$4")
	status=$(curl -sS -m 10 --cacert "$P/ca.pem" "${who[@]}" "${body[@]}" -X "$m" -o "$T/body" -w '%{http_code} %{content_type}' "$U$p" 2>"$T/curl.err")
	type=${status#* } status=${status%% *}
}
expect() { # STATUS CODE CREDENTIALS METHOD PATH [BODY]
	local want=$1 code=$2
	shift 2
	ask "$@"
	[ "$status" = "$want" ] || fail "$* gives $want, not $status: $(cat "$T/body" "$T/curl.err")"
	[ "$code" = - ] && return
	[ "$type" = application/problem+json ] || fail "$* gives problem+json, not $type"
	[ "$(jq -r .code "$T/body")" = "$code" ] || fail "$* gives the code $code: $(cat "$T/body")"
}
G='{"name":"GUEST","memory":"64M","accel":"soft"}'
expect 401 no-credentials none GET /v1/guests
expect 401 no-credentials none POST /v1/guests "${G/GUEST/x}"
expect 401 no-credentials none GET /metrics
expect 401 no-credentials eve GET /v1/guests    # another authority's
expect 401 no-credentials server GET /v1/guests # ours, but no client's
expect 200 - none GET /v1/healthz
expect 200 - alice GET /v1/tokens
expect 200 - bob GET /v1/guests
expect 403 role-too-low bob GET /v1/tokens
expect 403 role-too-low carol POST /v1/guests "${G/GUEST/x}" # not in tls_clients: viewer
for r in viewer operator admin; do
	ask alice POST /v1/tokens "{\"name\":\"t-$r\",\"role\":\"$r\",\"expires_in\":\"1h\"}"
	[ "$status" = 201 ] || fail "token for $r: $status $(cat "$T/body")"
	declare "$r=token:$(jq -r .token "$T/body")"
done
# shellcheck disable=SC2154
{
	expect 201 - "$operator" POST /v1/guests "${G/GUEST/web}"
	for who in "$viewer" carol; do
		expect 200 - "$who" GET /v1/guests/web
		expect 403 role-too-low "$who" POST /v1/guests/web/start
		expect 403 role-too-low "$who" DELETE /v1/guests/web
		expect 403 role-too-low "$who" PATCH /v1/guests/web '{"memory":"128M"}'
		expect 403 role-too-low "$who" POST /v1/guests/web/console '{}'
		expect 403 role-too-low "$who" GET /v1/tokens
	done
	for who in "$operator" bob; do
		expect 403 role-too-low "$who" POST /v1/tokens '{"name":"mine","role":"admin"}'
		expect 403 role-too-low "$who" DELETE /v1/tokens/t-admin
		expect 403 role-too-low "$who" POST /v1/pools '{"name":"p"}'
		expect 403 role-too-low "$who" POST /v1/networks '{"name":"n"}'
	done
	expect 200 - "$admin" GET /v1/tokens
	jq -e '[.. | objects | has("token") or has("sha256")] | any | not' "$T/body" >/dev/null || fail "a token is shown once: $(cat "$T/body")"
	grep -aq "${admin#token:}" "$STATE"/db/vmd.db* && fail "no token lies in the data base"

	# a token is good for its own request, not for what follows on the same connection
	curl -sS -m 10 --cacert "$P/ca.pem" -H "Authorization: Bearer ${admin#token:}" -o /dev/null "$U/v1/tokens" --next \
		-sS -m 10 --cacert "$P/ca.pem" -o "$T/body" -w '%{num_connects} %{http_code}' "$U/v1/tokens" >"$T/out" 2>&1
	[ "$(cat "$T/out")" = '0 401' ] || fail "the next request on the connection is nobody's: $(cat "$T/out" "$T/body")"

	# revoked, expired, unknown
	expect 204 - "$admin" DELETE /v1/tokens/t-operator
	expect 401 bad-token "$operator" GET /v1/guests
}
expect 401 bad-token token:0123456789abcdef0123456789abcdef GET /v1/guests
expect 201 - alice POST /v1/tokens '{"name":"brief","role":"viewer","expires_in":"1s"}'
brief=token:$(jq -r .token "$T/body")
has_expired() { ask "$brief" GET /v1/guests; [ "$status" = 401 ]; }
check "a token expires" until_true 5 has_expired
expect 401 bad-token "$brief" GET /v1/guests

# a stream ends with the token that it was opened with
stream() { # TOKEN: until it ends, 15 s at most; $streaming is its pid
	: >"$T/stream"
	curl -sSN -m 15 --cacert "$P/ca.pem" -H "Authorization: Bearer ${1#token:}" -o "$T/stream" "$U/v1/events" 2>"$T/curl.err" &
	streaming=$!
	until_true 5 grep -q retry "$T/stream" || fail "events are streamed: $(cat "$T/curl.err")"
}
ended() { # a time-out of curl's is 28, an end by the server is not
	wait "$streaming"
	[ $? -ne 28 ]
}
stream "$(curl -sS -m 10 --unix-socket "$SOCK" -H 'Content-Type: application/json' -d '{"name":"stream","role":"viewer"}' http://localhost/v1/tokens | jq -r .token)"
expect 204 - alice DELETE /v1/tokens/stream
check "a revoked token's stream ends" ended
stream "$(curl -sS -m 10 --unix-socket "$SOCK" -H 'Content-Type: application/json' -d '{"name":"short","role":"viewer","expires_in":"3s"}' http://localhost/v1/tokens | jq -r .token)"
check "an expired token's stream ends" ended

# ---- vmctl over TLS ----
export VMD_CA=$P/ca.pem
R="$BUILD/vmctl --url $U"
VMD_TOKEN=${viewer#token:} $R ls -q >"$T/out" 2>&1 || fail "vmctl with a token: $(cat "$T/out")"
[ "$(cat "$T/out")" = web ] || fail "vmctl lists over TLS: $(cat "$T/out")"
VMD_URL=$U VMD_TOKEN=${viewer#token:} "$BUILD/vmctl" delete web >"$T/out" 2>&1
[ $? -eq 5 ] || fail "denied is exit 5: $(cat "$T/out")"
$R ls >"$T/out" 2>&1
[ $? -eq 5 ] || fail "no credentials is exit 5: $(cat "$T/out")"
VMD_CERT=$P/alice.pem VMD_KEY=$P/alice.key $R token ls >"$T/out" 2>&1 || fail "vmctl with a certificate: $(cat "$T/out")"
VMD_CA=$P/other.pem VMD_TOKEN=${viewer#token:} $R ls >"$T/out" 2>&1
[ $? -eq 6 ] || fail "a daemon with another authority's certificate is not talked to: $(cat "$T/out")"
grep -q "signed by $P/other.pem" "$T/out" || fail "the message names the authority: $(cat "$T/out")"

VMD_TOKEN=$($VMCTL token create table) $R ls >"$T/out" 2>&1
[ $? -ne 0 ] && grep -q 'vmctl -q token create' "$T/out" || fail "what is no token is not sent, and the way out is said: $(cat "$T/out")"
VMD_TOKEN=$($VMCTL -q token create quiet) $R ls -q >"$T/out" 2>&1 || fail "-q prints a token that works: $(cat "$T/out")"

# ---- the transport ----
for v in tls1 tls1_1 tls1_2; do
	openssl s_client -connect "$A" "-$v" -cipher 'ALL:@SECLEVEL=0' </dev/null >"$T/out" 2>&1 && fail "$v is refused"
done
openssl s_client -connect "$A" -tls1_3 -CAfile "$P/ca.pem" -verify_return_error </dev/null >"$T/out" 2>&1 || fail "TLS 1.3 is spoken: $(cat "$T/out")"
code=$(curl -sS -m 10 -o "$T/body" -w '%{http_code}' "http://$A/v1/guests")
[ "$code" = 400 ] && [ "$(jq -r .code "$T/body")" = not-tls ] || fail "plain HTTP is told so: $code $(cat "$T/body")"
host() { curl -sS -m 10 --cacert "$P/ca.pem" --cert "$P/alice.pem" --key "$P/alice.key" -H "Host: $1" -o "$T/body" -w '%{http_code}' "$U/v1/guests"; }
[ "$(host evil.example.com)" = 421 ] || fail "a Host that is not ours is refused: $(cat "$T/body")"
[ "$(host vm.example.org:1)" = 200 ] || fail "a Host of host_allow is taken: $(cat "$T/body")"

# ---- requests that are not quite HTTP ----
bad() { # STATUS CODE REQUEST
	printf '%b' "$3" >"$T/req"
	curl_raw "$T/req"
	head -1 "$T/out" | grep -q "^HTTP/1.1 $1 " || fail "$3 gives $1: $(head -c 600 "$T/out")"
	grep -q "\"code\":\"$2\"" "$T/out" || fail "$3 gives $2: $(head -c 900 "$T/out")"
}
# -ign_eof keeps the session until the server, which closes after a refusal, ends it
curl_raw() {
	timeout 10 openssl s_client -connect "$A" -CAfile "$P/ca.pem" -cert "$P/alice.pem" -key "$P/alice.key" -quiet -ign_eof <"$1" 2>/dev/null >"$T/out"
}
H='Host: localhost\r\nConnection: close\r\n'
bad 400 malformed-request "POST /v1/guests HTTP/1.1\r\n${H}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
bad 400 malformed-request "GET /v1/guests/a%00b HTTP/1.1\r\n$H\r\n"
bad 400 malformed-request "GET /v1/guests/.. HTTP/1.1\r\n$H\r\n"
bad 400 malformed-request "GET /v1/guests/%2e%2e/tokens HTTP/1.1\r\n$H\r\n"
# over TCP a browser may be at the other end: only JSON that says so
bad 415 not-json "POST /v1/guests HTTP/1.1\r\n${H}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 2\r\n\r\n{}"
bad 413 body-too-large "POST /v1/guests HTTP/1.1\r\n${H}Content-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n{"
bad 413 body-too-large "PUT /v1/images/big/content HTTP/1.1\r\n${H}Content-Type: application/octet-stream\r\nContent-Length: 1073741825\r\n\r\n{"
expect 400 - alice POST /v1/guests '{"name":"y","memroy":"64M"}'
grep -q memory "$T/body" && grep -q memroy "$T/body" || fail "an unknown field brings a suggestion: $(cat "$T/body")"
# a body of many TLS records arrives whole, whatever the sizes
for n in 66000 300001 1048000; do
	{ printf '{"name":"z","labels":{"k":"'; head -c "$n" /dev/zero | tr '\0' x; printf '"}}'; } >"$T/long"
	code=$(curl -sS -m 10 --cacert "$P/ca.pem" --cert "$P/alice.pem" --key "$P/alice.key" -H 'Content-Type: application/json' --data-binary "@$T/long" -o "$T/body" -w '%{http_code}' "$U/v1/guests?dry_run=true")
	[ "$code" = 400 ] || fail "a long label is refused once it is all there: $code $(head -c 300 "$T/body")"
done

# requests that wait in one TLS record behind a slower one are all answered: no socket tells of them again
{
	for ((i = 0; i < 70; i++)); do printf 'GET /v1/hosts/local HTTP/1.1\r\nHost: localhost\r\nX-Fill: %040d\r\n\r\n' 0; done
	printf 'GET /v1/hosts/local HTTP/1.1\r\n%b\r\n' "$H"
} >"$T/req"
curl_raw "$T/req"
n=$(grep -ao 'HTTP/1.1 200 ' "$T/out" | wc -l)
[ "$n" -eq 71 ] || fail "71 pipelined requests are answered, not $n"

# ---- the audit trail: who, what, result ----
audit() { sqlite3 -readonly "$STATE/db/vmd.db" 'SELECT json FROM audit' >"$T/audit" 2>"$T/out" || fail "audit: $(cat "$T/out")"; }
audited() { # PRINCIPAL ROUTE NAME RESULT
	audit
	jq -es --arg p "$1" --arg r "$2" --arg n "$3" --arg x "$4" 'any(.principal == $p and .route == $r and .name == $n and .result == $x and (.time | length > 0))' "$T/audit" >/dev/null
}
ask alice POST /v1/guests/nobody/start
ask alice DELETE '/v1/guests/web?now=true'
stop_vmd # what was answered is written
check "the trail names alice's token" audited cert:alice TOKEN_CREATE '' ok
check "the trail names a token's bearer" audited token:t-operator GUEST_CREATE '' ok
check "the trail names what was revoked" audited token:t-admin TOKEN_DELETE t-operator ok
check "the trail names a failure" audited cert:alice GUEST_START nobody guest-not-found
check "the trail names a delete" audited cert:alice GUEST_DELETE web ok
grep -q 'refused: cert:carol asked for GUEST_START of "web"' "$T/vmd.log" || grep -q 'refused: token:t-viewer asked for GUEST_START' "$T/vmd.log" ||
	fail "what is refused for want of a role is in the log"
exit 0
