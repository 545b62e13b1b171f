#!/bin/sh
# Every forbidden act of the battery is stopped inside the real jail, from each kind of thread; the table says what single layers add.
exec "${VMD_BUILD:-build}/tests/jail/jail_battery"
