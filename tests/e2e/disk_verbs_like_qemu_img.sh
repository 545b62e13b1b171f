#!/usr/bin/env bash
# The options that qemu-img's users have in scripts and fingers, on our disk verbs: same meaning, checked by qemu-img; what has no meaning
# here is refused by name. And input that no disk may come of, over REST: refused, named, nothing left.
. "$(dirname "$0")/../lib/e2e.sh"
requires root jq qemu-img qemu-io curl
start_vmd
V=$STATE/pools/default
must() { "$@" >"$T/out" 2>&1 || fail "$*: $(cat "$T/out")"; }
refused() { # TEXT COMMAND...
	local text=$1
	shift
	"$@" >"$T/out" 2>&1 && fail "refused: $*"
	grep -q -- "$text" "$T/out" || fail "\"$text\" in the answer to $*: $(cat "$T/out")"
}
size() { qemu-img info --output=json "$V/$1" | jq '."virtual-size"'; }
must $VMCTL disk create -f qcow2 -o cluster_size=64k,preallocation=off base 64M
[ "$(size base.qcow2)" = $((64 << 20)) ] || fail "create -f -o NAME SIZE"
[ "$(qemu-img info --output=json "$V/base.qcow2" | jq '."cluster-size"')" = 65536 ] || fail "-o cluster_size"
must qemu-io -c 'write -P 5 0 8M' "$V/base.qcow2"
must $VMCTL disk create -f qcow2 -b base -F qcow2 top
must $VMCTL disk create -o backing_file=base,backing_fmt=qcow2,size=96M top2
[ "$(size top2.qcow2)" = $((96 << 20)) ] || fail "-o size"
must $VMCTL disk create -f raw plain 16M
[ "$(stat -c %s "$V/plain.raw")" = $((16 << 20)) ] || fail "create -f raw"
must $VMCTL disk convert -f qcow2 -O raw top flat
must qemu-img compare -q -F raw "$V/top.qcow2" "$V/flat.raw"
must $VMCTL disk convert -p -W -m 4 -c -O qcow2 -o compression_type=zstd top small
must $VMCTL -o json disk check small
jq -e '.compressed_clusters > 0' "$T/out" >/dev/null || fail "-c compresses: $(cat "$T/out")"
[ "$(qemu-img info --output=json "$V/small.qcow2" | jq -r '."format-specific".data."compression-type"')" = zstd ] || fail "with zstd"
must $VMCTL disk check -r all base
must $VMCTL disk check --output=json base
jq -e '.errors == 0' "$T/out" >/dev/null || fail "--output=json: $(cat "$T/out")"
must $VMCTL disk map --output json top
jq -e 'type == "array"' "$T/out" >/dev/null || fail "map --output json: $(cat "$T/out")"
must $VMCTL disk inspect -U --output=json top
jq -e '."virtual-size" == 67108864 and ."backing-filename" == "base.qcow2"' "$T/out" >/dev/null || fail "inspect --output=json: $(cat "$T/out")"
must $VMCTL disk compare -f qcow2 -F raw top flat
must $VMCTL disk resize top +32M
[ "$(size top.qcow2)" = $((96 << 20)) ] || fail "resize +32M: $(size top.qcow2)"
must $VMCTL disk resize --shrink top -16M
[ "$(size top.qcow2)" = $((80 << 20)) ] || fail "resize -16M: $(size top.qcow2)"
must $VMCTL disk rebase -u -b base -F qcow2 top
must $VMCTL disk bitmap --add top b0
must $VMCTL disk bitmap --add -g 128k top b1
must $VMCTL disk bitmap --merge b0 top b1
must $VMCTL disk bitmap --remove top b0
refused '-o preallocation=full' $VMCTL disk create -o preallocation=full x 1M
refused '-o encryption' $VMCTL disk create -o encryption=on x 1M
refused 'wants a value' $VMCTL disk convert top y -O
$VMCTL disk info x >/dev/null 2>&1 && fail "what is refused is not made"
# over REST: names and sizes that are none
ask() { curl -s -o "$T/body" -w '%{http_code}' --unix-socket "$SOCK" -H 'Content-Type: application/json' "$@"; }
before=$(find "$V" | sort)
long=$(printf 'a%.0s' $(seq 300))
for body in '{"name":"../x","size":1048576}' '{"name":"a\nb","size":1048576}' "{\"name\":\"$long\",\"size\":1048576}" '{"name":".","size":1048576}' '{"name":"a/b","size":1048576}' '{"name":"","size":1048576}' \
	'{"name":"a%00b","size":1048576}' '{"name":"z","size":0}' '{"name":"z","size":9223372036854775808}' '{"name":"z","size":9223372036854775807}' '{"name":"z","size":1000}' '{"name":"z","size":-512}' '{"name":"z"}' \
	'{"name":"z","size":1048576,"cluster_size":3000}' '{"name":"z","size":1048576,"pool":"../../etc"}' '{"name":"z","size":1048576,"format":"vmdk"}' '{"name":"z","size":1048576,"backing":"../base"}' '{"name":"z","size":1048576,"file":"/etc/passwd"}'; do
	code=$(ask -H 'Prefer: wait=5' -X POST -d "$body" http://localhost/v1/disks)
	case $code in 4??) ;; *) fail "$body is refused: $code $(cat "$T/body")" ;; esac
	jq -e '.code != null and .detail != null' "$T/body" >/dev/null || fail "and said why: $body: $(cat "$T/body")"
done
for body in '{"size":0}' '{"size":1000}' '{"size":9223372036854775807}'; do
	code=$(ask -H 'Prefer: wait=5' -X POST -d "$body" http://localhost/v1/disks/top/resize)
	case $code in 4??) ;; *) fail "resize $body is refused: $code $(cat "$T/body")" ;; esac
done
for body in '{"guest":"../x"}' '{"guest":"nobody"}' '{"guest":"g","name":"a/../b"}'; do
	code=$(ask -X POST -d "$body" http://localhost/v1/snapshots)
	case $code in 4??) ;; *) fail "a snapshot of $body is refused: $code $(cat "$T/body")" ;; esac
done
for path in 'snapshots/..%2f..%2fx' 'snapshots/a%2fb%2fc' 'snapshots/%0a' 'disks/..%2fbase'; do
	code=$(ask -X DELETE "http://localhost/v1/$path")
	case $code in 4??) ;; *) fail "$path is no name: $code" ;; esac
done
[ "$(find "$V" | sort)" = "$before" ] || fail "nothing came of it: $(find "$V")"
# a disk that another program has open is refused by name of what is at work, and no half file stays
uri=$($VMCTL -q disk export base --writable) || fail "export"
refused 'busy' $VMCTL disk convert base never
must $VMCTL disk unexport base
must $VMCTL disk create held 16M
coproc QIO { exec qemu-io "$V/held.qcow2" 2>&1; }
qio=$!
HELPERS="${HELPERS:-} $qio"
echo 'write 0 64k' >&"${QIO[1]}"
read -r _ <&"${QIO[0]}"
refused 'held' $VMCTL disk resize held 32M
grep -q 'another process\|in use' "$T/out" || fail "that another has it is said: $(cat "$T/out")"
refused 'held' $VMCTL disk convert held never
kill $qio 2>/dev/null
$VMCTL disk info never >/dev/null 2>&1 && fail "an attempt that failed leaves no disk"
[ -z "$(find "$V" -name 'never*')" ] || fail "nor a file"
# a convert that is cut off: no half file under the final name
must $VMCTL disk create big 512M
must qemu-io -c 'write -P 9 0 256M' "$V/big.qcow2"
$VMCTL --no-wait disk convert big half --compress zstd >/dev/null 2>&1
kill_vmd
start_vmd
settled() { [ "$($VMCTL -o json disk ls | jq '[.[] | select(.state != "ready")] | length')" = 0 ]; }
until_true 30 settled || fail "it ends: $($VMCTL disk ls)"
if $VMCTL disk info half >/dev/null 2>&1; then must $VMCTL disk compare big half; else until_true 5 test ! -e "$V/half.qcow2" || fail "no half file: $(ls "$V")"; fi
# a parent that is changed under its overlay is named
must $VMCTL disk create parent 16M
must $VMCTL disk create child --backing parent
uri=$($VMCTL -q disk export child --writable) || fail "export: $uri"
must qemu-io -f raw -c 'write 1M 64k' -c flush "$uri"
must $VMCTL disk unexport child
must qemu-io -c 'write 0 64k' "$V/parent.qcow2"
refused 'parent' $VMCTL disk resize child 32M
grep -q 'changed under it' "$T/out" || fail "what became of the parent is said: $(cat "$T/out")"
must $VMCTL disk rebase -u -b parent child
must $VMCTL disk resize child 32M
stop_vmd
exit 0
