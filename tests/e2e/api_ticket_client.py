"""api_ticket_client.py - a console over WebSocket, by hand.

	SOCKET PATH TEXT	upgrade at PATH, print the status; where it is 101, send TEXT in a frame and print what the guest says until it
				has said TEXT, 10 s at most. SOCKET: a path, or HOST:PORT,CA for TLS
"""
import base64, os, select, socket, ssl, struct, sys, time

def connect(where):
    if "," not in where:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(10)
        s.connect(where)
        return s
    address, ca = where.split(",")
    host, port = address.rsplit(":", 1)
    raw = socket.create_connection((host, int(port)), timeout=10)
    return ssl.create_default_context(cafile=ca).wrap_socket(raw, server_hostname="localhost")

def frame(data):
    mask = os.urandom(4)
    return bytes([0x82, 0x80 | len(data)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data))

s = connect(sys.argv[1])
s.sendall(("GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
           "Sec-WebSocket-Key: %s\r\n\r\n" % (sys.argv[2], base64.b64encode(os.urandom(16)).decode())).encode())
data = b""
while b"\r\n\r\n" not in data:
    more = s.recv(4096)
    if not more:
        break
    data += more
head, _, rest = data.partition(b"\r\n\r\n")
status = head.split(b" ")[1].decode()
print(status)
if status != "101":
    sys.exit(0)
want = sys.argv[3].encode()
s.sendall(frame(want))
text, end = b"", time.monotonic() + 10
while want.strip() not in text and time.monotonic() < end:
    while len(rest) < 2 or len(rest) < 2 + (rest[1] & 127):
        more = s.recv(4096)
        if not more:
            sys.exit("the console ended: %r" % text)
        rest += more
    n, at = rest[1] & 127, 2
    if n == 126:
        n, at = struct.unpack(">H", rest[2:4])[0], 4
    while len(rest) < at + n:
        rest += s.recv(4096)
    if rest[0] & 15 in (1, 2):
        text += rest[at:at + n]
    rest = rest[at + n:]
print(text.decode(errors="replace"))
