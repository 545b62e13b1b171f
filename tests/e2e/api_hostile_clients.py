"""api_hostile_clients.py - clients that mean harm, or know no better. Each prints a line, and exits 1 where the daemon did not hold.

	slow ADDRESS CA		a TLS handshake and a request head at a byte a second: both cut off, others served meanwhile
	idle SOCKET COUNT	COUNT idle connections on the unix socket: bounded, newcomers served at once, memory of all given back
"""
import select, socket, ssl, sys, time

GET = b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

def fail(text):
    print("FAILED:", text)
    sys.exit(1)

def tcp(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=20)

def tls(address, ca):
    ctx = ssl.create_default_context(cafile=ca)
    return ctx.wrap_socket(tcp(address), server_hostname="localhost")

def served(connect):
    """seconds that a well-behaved request takes"""
    start = time.monotonic()
    s = connect()
    s.sendall(GET)
    head = b""
    while True:
        more = s.recv(65536)
        if not more:
            break
        head += more
    s.close()
    if not head.startswith(b"HTTP/1.1 200 "):
        fail("a good request is answered: %r" % head[:80])
    return time.monotonic() - start

def slow(address, ca):
    hello = ssl.MemoryBIO()
    out = ssl.MemoryBIO()
    ctx = ssl.create_default_context(cafile=ca)
    obj = ctx.wrap_bio(hello, out, server_hostname="localhost")
    try:
        obj.do_handshake()
    except ssl.SSLWantReadError:
        pass
    hello = out.read()
    shake, silent = tcp(address), tcp(address)
    heads = [tls(address, ca) for _ in range(50)]
    drip = b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100
    start, i, worst, said = time.monotonic(), 0, 0.0, {}
    # while they drip, somebody else is served; a byte goes out each second, by the clock that select waits on
    open_ones = {shake: "handshake", silent: "silence"} | {h: "head" for h in heads}
    while open_ones and time.monotonic() - start < 30:
        for s, kind in list(open_ones.items()):
            try:
                if kind == "handshake":
                    s.sendall(hello[i:i + 1])
                elif kind == "head":
                    s.sendall(drip[i:i + 1])
            except OSError:
                said.setdefault(kind, []).append(time.monotonic() - start)
                del open_ones[s]
        i += 1
        worst = max(worst, served(lambda: tls(address, ca)))
        end = start + i
        while open_ones and (left := end - time.monotonic()) > 0:
            for s in select.select(list(open_ones), [], [], left)[0]:
                kind = open_ones[s]
                try:
                    data = s.recv(65536)
                except OSError:
                    data = b""
                if data and kind == "head" and not data.startswith(b"HTTP/1.1 408 "):
                    fail("a dripping head is answered by 408: %r" % data[:80])
                if data and kind != "head":
                    continue # an alert of TLS
                said.setdefault(kind, []).append(time.monotonic() - start)
                del open_ones[s]
    if open_ones:
        fail("still open after 30 s: %s" % sorted(set(open_ones.values())))
    for kind, times in said.items():
        if not 5 < min(times) <= max(times) < 16:
            fail("%s is cut off after about 10 s, not %.1f to %.1f" % (kind, min(times), max(times)))
    if worst > 2:
        fail("others are served meanwhile, not after %.1f s" % worst)
    print("cut off: " + ", ".join("%s after %.1f s" % (k, max(t)) for k, t in said.items()) + "; others in %.0f ms at most" % (worst * 1000))

def idle(path, count):
    def connect():
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(20)
        s.connect(path)
        return s
    held, worst = [], 0.0
    for n in range(count):
        held.append(connect())
        if n % 500 == 499:
            worst = max(worst, served(connect))
    poll = select.poll()
    for s in held:
        poll.register(s, select.POLLIN)
    # what was closed for a newcomer shows as readable: an end, or a 503
    deadline = time.monotonic() + 10
    while (alive := count - len(poll.poll(100))) > 1024 and time.monotonic() < deadline:
        pass
    if not 0 < alive <= 1024:
        fail("of %d idle connections at most 1024 stay, not %d" % (count, alive))
    worst = max(worst, served(connect))
    if worst > 2:
        fail("newcomers are served at once, not after %.1f s" % worst)
    print("%d of %d idle connections stayed; newcomers served in %.0f ms at most" % (alive, count, worst * 1000))

if sys.argv[1] == "slow":
    slow(sys.argv[2], sys.argv[3])
else:
    idle(sys.argv[2], int(sys.argv[3]))
