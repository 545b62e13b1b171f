#!/usr/bin/env python3
"""ask.py SOCKET COMMAND - types it into the shell of a guest on a console socket, waits for its end, prints what it said; its exit status."""
import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.settimeout(90)
got = b''
def until(what):
    global got
    while what not in got or b'\n' not in got.split(what, 1)[1] and what != b'/ # ':
        more = s.recv(65536)
        if not more:
            sys.exit('the console ended: %r' % got)
        got += more
until(b'/ # ')
mark = 'E%d=' % time.time_ns() # what was said before is shown again to who attaches
s.sendall((sys.argv[2] + '; echo "E""%s$?"\n' % mark[1:]).encode())
until(mark.encode())
print(got.decode(errors='replace'))
sys.exit(int(got.split(mark.encode(), 1)[1].split()[0]))
