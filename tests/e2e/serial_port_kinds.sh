#!/usr/bin/env bash
# Every kind of serial port, live: what a guest says arrives and what is said reaches it, over pty, file, unix, tcp (either side), tty and
# another guest's port; peers that go and come; who may read what is created; paths that lead elsewhere are refused.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
in_own_netns
requires root jq gcc socat python3
mkdir "$T/ports"
printf 'serial_roots = %s:/dev/pts\n' "$T/ports" >"$T/vmd.conf"
start_vmd --config "$T/vmd.conf"
# says "port" and then gives back each letter that it hears, on each of the two first ports
cat >"$T/echo.S" <<'S'
	.globl _start
_start:	lea text(%rip), %rsi
	mov $0x3f8, %dx
	mov $6, %ecx
	rep outsb
	lea text(%rip), %rsi
	mov $0x2f8, %dx
	mov $6, %ecx
	rep outsb
	mov $0x3f8, %ebx
1:	lea 5(%rbx), %edx
	in %dx, %al
	test $1, %al
	jz 2f
	mov %ebx, %edx
	in %dx, %al
	out %al, %dx
2:	xor $0x100, %ebx
	jmp 1b
text:	.ascii "port\r\n"
S
gcc -nostdlib -static -no-pie -Wl,-Ttext=0x1000000 -Wl,--build-id=none -o "$T/echo" "$T/echo.S" || fail "no kernel could be made"
# another, that says on its second port what it hears on the first
sed 's/^	out %al, %dx/	mov $0x2f8, %edx\n	out %al, %dx/' "$T/echo.S" >"$T/relay.S"
gcc -nostdlib -static -no-pie -Wl,-Ttext=0x1000000 -Wl,--build-id=none -o "$T/relay" "$T/relay.S" || fail "no kernel could be made"
KERNEL=$T/echo
launch() { # NAME PORT [PORT]
	local name=$1
	shift
	quiet $VMCTL launch "$name" --accel soft --memory 64M --kernel "$KERNEL" "${@/#/--serial=}"
}
rm_guest() { quiet $VMCTL stop --force "$1" && quiet $VMCTL delete --now "$1" || fail "guest $1 is removed"; }
# talk KIND ADDRESS WORD - a word sent comes back
cat >"$T/talk.py" <<'P'
import os, select, socket, sys, time
kind, at = sys.argv[1], sys.argv[2]
if kind == "unix":
    s = socket.socket(socket.AF_UNIX); s.connect(at); fd = s.fileno()
elif kind == "tcp":
    s = socket.create_connection(("127.0.0.1", int(at))); fd = s.fileno()
elif kind == "tcp-listen":
    l = socket.create_server(("127.0.0.1", int(at))); print("listening", flush=True); s, _ = l.accept(); fd = s.fileno()
elif kind == "unix-listen":
    l = socket.socket(socket.AF_UNIX); l.bind(at); l.listen(); print("listening", flush=True); s, _ = l.accept(); fd = s.fileno()
else:
    import tty
    fd = os.open(at, os.O_RDWR | os.O_NOCTTY); tty.setraw(fd)
word = sys.argv[3].encode()
end, heard = time.monotonic() + 10, b""
os.write(fd, word)
while word not in heard:
    left = end - time.monotonic()
    if left <= 0 or not select.select([fd], [], [], left)[0]:
        sys.exit("no answer to %r on %s %s: %r" % (word, kind, at, heard))
    got = os.read(fd, 4096)
    if not got:
        sys.exit("%s %s closed: %r" % (kind, at, heard))
    heard += got
print(heard.decode(errors="replace"))
P
talk() { timeout 15 python3 "$T/talk.py" "$@" >"$T/talk" 2>&1 || { cat "$T/talk" >&2; return 1; }; }

check "pty" launch p pty log
pts=$($VMCTL -o json info p | grep -o '/dev/pts/[0-9]*' | head -1)
[ -c "$pts" ] || fail "info names the pty: $($VMCTL -o json info p)"
check "a pty answers" talk pty "$pts" hello
check "and the next one who opens it too" talk pty "$pts" again
rm_guest p

check "file" launch f "file:$T/ports/f.txt" "unix:$T/ports/f.sock"
said() { grep -q port "$T/ports/f.txt"; }
until_true 10 said || fail "the file has what the guest said"
[ "$(stat -c %a "$T/ports/f.txt")" = 600 ] || fail "a file is for its owner: $(stat -c %a "$T/ports/f.txt")"
[ "$(stat -c %a "$T/ports/f.sock")" = 600 ] || fail "a socket is for its owner: $(stat -c %a "$T/ports/f.sock")"
check "unix" talk unix "$T/ports/f.sock" hello
check "unix, the next peer" talk unix "$T/ports/f.sock" again
setpriv --reuid 12345 --regid 12345 --clear-groups python3 "$T/talk.py" unix "$T/ports/f.sock" x >/dev/null 2>&1 && fail "another user connects to the socket"
rm_guest f

check "tcp" launch t tcp:127.0.0.1:4555 null
check "tcp answers" talk tcp 4555 hello
check "and the next peer" talk tcp 4555 again
launch t2 tcp:127.0.0.1:4555 && fail "two guests on one address"
grep -q '127.0.0.1:4555' "$T/out" || fail "the refusal names the address: $(cat "$T/out")"
quiet $VMCTL delete --now t2
rm_guest t

timeout 20 python3 "$T/talk.py" tcp-listen 4556 hello >"$T/tcp" 2>&1 &
tcp=$!
timeout 20 python3 "$T/talk.py" unix-listen "$T/ports/peer.sock" hello >"$T/unix" 2>&1 &
unix=$!
listening() { grep -q listening "$T/tcp" && grep -q listening "$T/unix"; }
until_true 10 listening || fail "the peers listen"
check "connect" launch c tcp:127.0.0.1:4556,connect "unix:$T/ports/peer.sock,connect"
wait $tcp || fail "tcp, connecting: $(cat "$T/tcp")"
wait $unix || fail "unix, connecting: $(cat "$T/unix")"
[ "$(state_of c)" = running ] || fail "it runs on when its peers go"
rm_guest c

socat "PTY,link=$T/near,raw,echo=0" "PTY,link=$T/far,raw,echo=0" 2>/dev/null &
HELPERS=$!
until_true 5 test -e "$T/far" || fail "a pair of terminals"
check "tty" launch y "tty:$(realpath "$T/far")"
check "tty answers" talk pty "$T/near" hello
rm_guest y

# another guest's port: what b says on its first, a hears on its first, and repeats on its second
KERNEL=$T/relay
check "null and log" launch a null log
logged() { [ "$($VMCTL logs a --port serial1 | tr -d '\r' | grep -cx port)" -eq "$1" ]; }
until_true 10 logged 1 || fail "a says its own: $($VMCTL logs a --port serial1)"
check "guest" launch b guest:a:serial0 log
until_true 10 logged 2 || fail "a hears what b says: $($VMCTL logs a --port serial1)"
rm_guest a
[ "$(state_of b)" = running ] || fail "b runs on when a goes"
rm_guest b
KERNEL=$T/echo

# what leads elsewhere
echo precious >"$T/precious"
ln -s "$T/precious" "$T/ports/link"
ln -s "$T" "$T/ports/dir"
mkfifo "$T/ports/fifo"
for spec in "file:$T/precious" "file:$T/ports/../precious" "file:$T/ports/link" "file:$T/ports/dir/precious" "file:../vmd.lock" file:/etc/passwd \
	"file:$T/ports/fifo" "file:$T/ports" "unix:$T/x.sock" "tty:$T/ports/f.txt" tcp:nowhere:1 tcp:127.0.0.1:99999 "unix:$T/ports/none,connect" bad:kind; do
	launch evil "$spec" 2>/dev/null && fail "$spec is taken"
	grep -q "serial0\|serials\[0\]" "$T/out" || fail "$spec is refused, and the port is named: $(cat "$T/out")"
	$VMCTL delete --now evil >/dev/null 2>&1
done
[ "$(cat "$T/precious")" = precious ] || fail "a file outside the roots was written"
[ ! -e "$T/x.sock" ] || fail "a socket outside the roots was made"
stop_vmd
exit 0
