#!/usr/bin/env bash
# Events reach a client that comes back with its Last-Event-ID, each once, whatever dies in between; a console's ticket opens once.
. "$(dirname "$0")/../lib/e2e.sh"
. "$(dirname "$0")/../lib/pki.sh"
requires root jq curl openssl python3 pgrep gcc
pki_make
args=(--set listen=127.0.0.1:0 --set "tls_cert=$T/pki/server.pem" --set "tls_key=$T/pki/server.key")
start_vmd "${args[@]}"
api_pid() { pgrep -P "$VMD_PID" -x vmd-api; }
api_died() { [ -n "$(api_pid)" ] && [ "$(api_pid)" != "$1" ]; }
healthy() { $VMCTL query GET /v1/healthz; }
define() { until_true 15 $VMCTL create "$1" --memory 64M --accel soft || fail "guest $1 is defined"; }

# an SSE client as a browser is one: what has ended with an empty line counts, then it comes back with that number
: >"$T/seen"
reader() {
	local last line id='' data=''
	while [ -e "$T/seen" ] && [ ! -e "$T/enough" ]; do
		last=$(tail -n 1 "$T/seen" | cut -d' ' -f1)
		curl -sSN --unix-socket "$SOCK" -H "Last-Event-ID: ${last:-0}" http://localhost/v1/events 2>/dev/null |
			while IFS= read -r line; do
				case $line in
				id:*) id=${line#id: } ;;
				data:*) data=${line#data: } ;;
				'') [ -z "$id$data" ] || echo "$id $data" >>"$T/seen" ; id='' data='' ;;
				esac
			done
		read -r -t 0.05 <> <(:) || true
	done
}
reader &
reader=$!
define g1
check "an event comes live" until_true 10 grep -q '"g1"' "$T/seen"
for round in 1 2 3; do
	old=$(api_pid)
	kill -KILL "$old"
	define "api$round"
	check "another api serves" until_true 10 api_died "$old"
done
kill_vmd KILL
start_vmd "${args[@]}"
define after-kill
stop_vmd
start_vmd "${args[@]}"
define after-stop
old=$(pgrep -P "$VMD_PID" -x vmd-core)
kill -KILL "$old"
check "core and api come again" until_true 15 healthy
define after-core
check "the last event arrives" until_true 15 grep -q '"after-core"' "$T/seen"
touch "$T/enough"
kill -KILL "$(api_pid)" # ends the reader's connection
wait "$reader"
awk '$1 != NR { print "line " NR " is event " $1; exit 1 }' "$T/seen" || fail "each event once, none lost: $(cut -c1-200 "$T/seen")"
for g in g1 api1 api2 api3 after-kill after-stop after-core; do
	[ "$(cut -d' ' -f2- "$T/seen" | jq -r --arg g $g 'select(.kind == "guest.created" and .name == $g) | .seq' | wc -l)" -eq 1 ] ||
		fail "one event tells of $g: $(cut -c1-200 "$T/seen")"
done
# all of it again, from the data base, to somebody who was not there
check "healthy" until_true 10 healthy
curl -sS -m 10 --unix-socket "$SOCK" 'http://localhost/v1/events?since=0&follow=false' | sed -n 's/^data: //p' >"$T/all"
head -n "$(wc -l <"$T/seen")" "$T/all" | diff - <(cut -d' ' -f2- "$T/seen") >"$T/out" || fail "a late client gets the same: $(head -c 600 "$T/out")"

# ---- tickets ----
cat >"$T/echo.S" <<'S'
	.globl _start
_start:	mov $0x3fd, %dx
	in (%dx), %al
	test $1, %al
	jz _start
	mov $0x3f8, %dx
	in (%dx), %al
	out %al, (%dx)
	jmp _start
S
gcc -nostdlib -static -no-pie -Wl,-Ttext=0x1000000 -Wl,--build-id=none -o "$T/echo" "$T/echo.S" || fail "no echo kernel could be made"
check "launch" $VMCTL launch e --accel soft --memory 64M --kernel "$T/echo" --serial null >/dev/null 2>&1
A=$(sed -n 's/.*also listens on \([^ ]*\) .*/\1/p' "$T/vmd.log" | tail -n 1)
ticket() { curl -sS -m 10 --unix-socket "$SOCK" -H 'Content-Type: application/json' -d '{}' "http://localhost/v1/guests/$1/console" | jq -r .path; }
ws() { timeout 20 python3 -I "$(dirname "$0")/api_ticket_client.py" "$@" >"$T/ws" 2>&1; head -n 1 "$T/ws"; }
p=$(ticket e)
[ "$(ws "$SOCK" "$p" 'once upon')" = 101 ] || fail "a ticket opens the console: $(cat "$T/ws")"
grep -q 'once upon' "$T/ws" || fail "the guest answers: $(cat "$T/ws")"
[ "$(ws "$SOCK" "$p" again)" = 403 ] || fail "a ticket opens once: $(cat "$T/ws")"
p=$(ticket e)
[ "$(ws "$A,$T/pki/ca.pem" "$p" 'over TLS')" = 101 ] || fail "a browser needs nothing but its ticket: $(cat "$T/ws")"
grep -q 'over TLS' "$T/ws" || fail "the guest answers over TLS: $(cat "$T/ws")"
[ "$(ws "$A,$T/pki/ca.pem" "$p" again)" = 403 ] || fail "nor does it open twice over TLS: $(cat "$T/ws")"
[ "$(ws "$A,$T/pki/ca.pem" "/v1/guests/e/console?ticket=00000000000000000000000000000000" x)" = 403 ] || fail "a guessed ticket: $(cat "$T/ws")"
p=$(ticket e)
other=$(curl -sS --unix-socket "$SOCK" http://localhost/v1/guests/g1 | jq -r .uuid)
[ "$(ws "$SOCK" "/v1/guests/$other/console?${p#*\?}" x)" = 403 ] || fail "a ticket is for one guest: $(cat "$T/ws")"
[ "$(ws "$SOCK" "$p" x)" = 403 ] || fail "and is spent by the attempt: $(cat "$T/ws")"
p=$(ticket e)
old=$(api_pid)
kill -KILL "$old"
check "another api serves" until_true 10 api_died "$old"
check "healthy" until_true 10 healthy
[ "$(ws "$SOCK" "$p" x)" = 403 ] || fail "tickets end with the process that made them: $(cat "$T/ws")"
[ "$(ws "$SOCK" "$(ticket e)" 'still here')" = 101 ] || fail "a new one opens: $(cat "$T/ws")"
check "stop" $VMCTL stop --force e >/dev/null 2>&1
exit 0
