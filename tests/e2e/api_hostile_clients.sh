#!/usr/bin/env bash
# Clients that hold on to what they do not use: bytes that drip, thousands of idle connections. Others are served meanwhile.
. "$(dirname "$0")/../lib/e2e.sh"
. "$(dirname "$0")/../lib/pki.sh"
requires root jq curl openssl python3 pgrep
ulimit -n "$(ulimit -Hn)"
[ "$(ulimit -n)" -ge 10200 ] || skip "needs 10,200 descriptors in a process (ulimit -Hn)"
pki_make
start_vmd --set listen=127.0.0.1:0 --set "tls_cert=$T/pki/server.pem" --set "tls_key=$T/pki/server.key"
A=$(sed -n 's/.*also listens on \([^ ]*\) .*/\1/p' "$T/vmd.log")
api=$(pgrep -P "$VMD_PID" -x vmd-api)
rss() { awk '/^VmRSS:/ { print $2 }' "/proc/$api/status"; }
before=$(rss)
python3 -I "$(dirname "$0")/api_hostile_clients.py" idle "$SOCK" 10000 || fail "10,000 idle connections"
after=$(rss)
[ $((after - before)) -lt 32768 ] || fail "idle connections cost little memory: $before KiB before, $after after"
python3 -I "$(dirname "$0")/api_hostile_clients.py" slow "$A" "$T/pki/ca.pem" || fail "dripping clients"

# a large body is refused by its head: nothing of it is read, nothing waits for it
start=$SECONDS
truncate -s 1G "$T/big"
code=$(curl -sS -m 20 --unix-socket "$SOCK" -H 'Content-Type: application/json' -H 'Expect:' \
	-T "$T/big" -X POST -o "$T/body" -w '%{http_code} %{size_upload}' http://localhost/v1/guests 2>"$T/curl.err")
[ "${code%% *}" = 413 ] || fail "a body of 1 GiB is refused: $code $(cat "$T/body" "$T/curl.err")"
[ "${code##* }" -lt 16777216 ] && [ $((SECONDS - start)) -lt 10 ] || fail "it is refused early: $code after $((SECONDS - start)) s"
[ "$(pgrep -P "$VMD_PID" -x vmd-api)" = "$api" ] || fail "the api role lives: it is the same process"
stop_vmd
exit 0
