#!/usr/bin/env bash
# serial
# Random requests while random processes of the daemon, jobs and guests are killed -9: nothing lost, nothing half made, nothing left over.
# SEED=n repeats the choices of a run; VMD_TEST_LONG=1 goes on for ten minutes.
# shellcheck source=tests/lib/e2e.sh
. "$(dirname "$0")/../lib/e2e.sh"
in_own_netns
requires root gcc python3 dnsmasq nft ss
idle_kernel "$T/idle"
seconds=30
[ -z "${VMD_TEST_LONG:-}" ] || seconds=600
python3 "${0%.sh}.py" "$(realpath "$BUILD")" "$T" "${SEED:-$RANDOM}" "$seconds" "$T/idle" ||
	fail "see above"
exit 0
