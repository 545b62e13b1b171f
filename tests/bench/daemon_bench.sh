#!/usr/bin/env bash
# daemon_bench.sh - figures of the daemon as a whole: its start with 10,000 guests on record, reads over the socket meanwhile defined, a command
# of vmctl from start to end, a jail from fork to exec, an idle guest's VMM in memory. ONLY=daemon, vmctl, jail or vmm narrows.
. "$VMD_TOP/tests/lib/e2e.sh"
only=${ONLY:-}
wanted() { case $1 in "$only"*) return 0 ;; esac; case $only in "$1"*) return 0 ;; esac; return 1; }
now_us() { echo $(($(date +%s%N) / 1000)); }
# figure NAME UNIT NOTE: numbers on standard input, one a line; the median and p99 of them
figure() {
	sort -n | awk -v f="$1" -v u="$2" -v note="$3" '{ v[NR] = $1 } END {
		p = int((NR * 99 + 99) / 100)
		printf "{\"figure\":\"%s\",\"unit\":\"%s\",\"ours\":%g,\"runs\":%d,\"ours_p99\":%g,\"note\":\"%s\"}\n", f, u, v[int((NR + 1) / 2)], NR, v[p], note }'
}
if wanted daemon; then
	n=10000
	idle_kernel "$T/idle"
	start_vmd
	$VMCTL image import "$T/idle" k --kind kernel >/dev/null 2>&1 || fail "import"
	for i in $(seq 1 $n); do
		printf 'next\nunix-socket = "%s"\nurl = "http://localhost/v1/guests"\noutput = /dev/null\nsilent\nheader = "Content-Type: application/json"\ndata = "{\\"name\\":\\"g%05d\\",\\"memory\\":\\"64M\\",\\"kernel\\":\\"k\\"}"\n' "$SOCK" "$i"
	done | sed 1d >"$T/curl"
	t0=$(now_us)
	curl -K "$T/curl" >/dev/null || fail "create"
	echo $((($(now_us) - t0) / 1000)) | figure daemon.create.10000 ms "one client, one request after another"
	[ "$($VMCTL ls -q | wc -l)" -eq $n ] || fail "$n guests are defined"
	: >"$T/starts"
	for _ in 1 2 3 4 5; do
		kill_vmd
		t0=$(now_us)
		"$BUILD/vmd" --foreground --state "$STATE" --run "$RUN" >>"$T/vmd.log" 2>&1 </dev/null &
		VMD_PID=$!
		until curl -sf --unix-socket "$SOCK" 'http://localhost/v1/guests/g10000' >/dev/null 2>&1; do :; done
		echo $((($(now_us) - t0) / 1000)) >>"$T/starts"
	done
	figure daemon.start.10000 ms "killed -9 before; until a guest of 10,000 defined can be read" <"$T/starts"
	for _ in $(seq 1 50); do
		t0=$(now_us)
		curl -sf --unix-socket "$SOCK" 'http://localhost/v1/guests?limit=1000' >/dev/null
		echo $((($(now_us) - t0)))
	done | figure daemon.list.1000of10000 us "curl's own start included"
	stop_vmd
	rm -rf "$STATE" "$RUN"
fi
if wanted vmctl; then
	start_vmd
	for _ in $(seq 1 200); do
		t0=$(now_us)
		$VMCTL ls >/dev/null
		echo $(($(now_us) - t0))
	done | figure vmctl.ls us "no guests; process start to end, shell's fork included"
	stop_vmd
fi
if wanted jail; then
	"$BUILD/tests/jail/jail_battery" 2>/dev/null | sed -n 's/^jail set-up, fork to exec: p50 \([0-9]*\) us, p99 \([0-9]*\) us (\([0-9]*\) runs)$/{"figure":"jail.setup","unit":"us","ours":\1,"runs":\3,"ours_p99":\2,"note":"fork to exec, all layers"}/p'
fi
# private PID RAM: KiB of private memory that was written, guest RAM (the mapping's name) left out
private() { awk -v name="$2" '/^[0-9a-f]+-/ { ram = index($0, name) } /^Private_Dirty/ && !ram { s += $2 } END { print s }' "/proc/$1/smaps"; }
if wanted vmm; then
	idle_kernel "$T/idle"
	start_vmd
	for accel in kvm soft; do
		[ $accel = soft ] || [ -w /dev/kvm ] || continue
		$VMCTL launch m --accel $accel --memory 64M --kernel "$T/idle" --serial log >/dev/null || fail "launch"
		ours=$(private "$($VMCTL -o json info m | jq .pid)" memfd:ram)
		peer='' qaccel=$([ $accel = kvm ] && echo kvm || echo tcg)
		# the peer is not even let run: what it takes to be there
		if command -v qemu-system-x86_64 >/dev/null; then
			qemu-system-x86_64 -nodefaults -no-user-config -display none -machine microvm,memory-backend=ram -accel "$qaccel" -m 64 -S \
				-object memory-backend-memfd,id=ram,size=64M,share=on -serial null -qmp "unix:$T/qmp,server=on,wait=off" 2>/dev/null &
			qemu=$!
			HELPERS="${HELPERS:-} $qemu"
			until_true 10 [ -S "$T/qmp" ] || fail "qemu"
			k=$(private $qemu memfd:)
			peer=",\"peer\":$k,\"peer_name\":\"qemu-microvm $qaccel, not started\",\"ratio\":$(awk "BEGIN { printf \"%.3f\", $ours / $k }")"
			kill $qemu
			rm -f "$T/qmp"
		fi
		echo "{\"figure\":\"vmm.memory.$accel\",\"unit\":\"KiB\",\"ours\":$ours$peer,\"runs\":1,\"note\":\"Private_Dirty of a halted guest's VMM but for guest RAM; target 512, aim 128\"}"
		$VMCTL delete --now --force m >/dev/null
	done
	stop_vmd
fi
exit 0
