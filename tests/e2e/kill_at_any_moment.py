#!/usr/bin/env python3
"""kill_at_any_moment.py BUILD DIR SEED SECONDS KERNEL - a daemon under random requests; a random process of it is killed -9 in the midst.

After every few kills it is left to settle and looked at whole: records, files, processes, control groups, sockets, taps, bridges, rules
and uids have to agree, nothing may be half made, and what was finished before may not be lost. Times are the machine's, so a seed gives
the same choices, not the same interleaving. Started by kill_at_any_moment.sh in a network namespace of its own.
"""
import http.client, json, os, random, re, signal, socket, sqlite3, subprocess, sys, threading, time

BUILD, DIR, SEED, SECONDS, KERNEL = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
STATE, RUN = DIR + "/state", DIR + "/run"
SOCK, DB, POOL = RUN + "/api.sock", STATE + "/db/vmd.db", STATE + "/pools/default"
rnd = random.Random(SEED)
log = open(DIR + "/vmd.log", "ab", buffering=0)
history = []


class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCK)


def call(method, path, body=None, raw=None, timeout=30, headers=()):
    c = Unix("localhost", timeout=timeout)
    try:
        head = dict(headers)
        data = raw if raw is not None else (json.dumps(body) if body is not None else None)
        if data is not None:
            head["Content-Type"] = "application/octet-stream" if raw is not None else "application/json"
        c.request(method, path, data, head)
        r = c.getresponse()
        text = r.read()
        return r.status, (json.loads(text) if text[:1] in (b"{", b"[") else None)
    finally:
        c.close()


def quiet(*a, **k):
    try:
        return call(*a, **k)
    except (OSError, http.client.HTTPException, ValueError):
        return 0, None


def fail(what):
    print("FAILED (seed %d): %s" % (SEED, what))
    for line in history[-14:]:
        print("  " + line)
    sys.stdout.flush()
    daemon.kill()
    os._exit(1)


def until(seconds, ok):
    """the last answer of ok(), "" when all is well; polls, because what it looks at tells nobody"""
    end = time.monotonic() + seconds
    while True:
        try:
            why = ok()
        except (OSError, http.client.HTTPException, ValueError) as e:  # the daemon comes back from the last kill
            why = "no answer: %s" % e
        if not why or time.monotonic() > end:
            return why
        time.sleep(0.05)


# ---- processes ----
def processes():
    out = {}
    for p in os.listdir("/proc"):
        if p.isdigit():
            try:
                out[int(p)] = (open("/proc/%s/cmdline" % p, "rb").read().replace(b"\0", b" ").decode(errors="replace"),
                               int(open("/proc/%s/stat" % p).read().rsplit(")", 1)[1].split()[1]),
                               os.readlink("/proc/%s/exe" % p))
            except (OSError, IndexError, ValueError):
                pass
    return out


def listening_guests():
    """uuid -> pid of the processes that hold a guest's socket here"""
    out = {}
    for line in subprocess.run(["ss", "-xlpnH"], capture_output=True, text=True).stdout.splitlines():
        m = re.search(re.escape(RUN) + r"/guests/([0-9a-f-]{36})\.sock.*pid=(\d+)", line)
        if m:
            out[m.group(1)] = int(m.group(2))
    return out


def start():
    global daemon
    daemon = subprocess.Popen([BUILD + "/vmd", "--state", STATE, "--run", RUN], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    why = until(20, lambda: "" if quiet("GET", "/v1/healthz", timeout=2)[0] == 200 else "the daemon does not answer")
    if why:
        fail(why)


def victim():
    kind = rnd.choice(["core", "core", "api", "priv", "priv", "guest", "image", "image", "dnsmasq"])
    all_ = processes()
    pid = 0
    if kind == "priv":
        pid = daemon.pid
    elif kind in ("core", "api"):
        pid = next((p for p, (cmd, up, _) in all_.items() if up == daemon.pid and "role=" + kind in cmd), 0)
    elif kind == "guest":
        got = sorted(listening_guests().values())
        pid = rnd.choice(got) if got else 0
    elif kind == "image":
        pid = next((p for p, (cmd, up, exe) in all_.items() if exe.endswith("/vmd-image") and up == daemon.pid), 0)
    else:
        pid = next((p for p, (cmd, up, _) in all_.items() if "dnsmasq" in cmd and STATE in cmd), 0)
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pid = 0
    history.append("kill -9 %s %s" % (kind, pid or "(none there)"))
    if kind == "priv":
        daemon.wait()
        start()


# ---- what is asked for ----
GUESTS, DISKS, IMAGES = ["g0", "g1", "g2"], ["d0", "d1"], ["i0", "i1"]


def upload(name):
    quiet("POST", "/v1/images", {"name": name, "kind": "disk", "format": "raw"})
    quiet("PUT", "/v1/images/%s/content" % name, raw=os.urandom(1 << 18) + bytes(1 << 21))


def action():
    g, d, i = rnd.choice(GUESTS), rnd.choice(DISKS), rnd.choice(IMAGES)
    guest = {"name": g, "accel": "soft", "memory": 32 << 20, "kernel": "idle", "serials": [{"spec": "log"}],
             "disks": [{"image": "base"}] if rnd.random() < 0.5 else [{"size": 8 << 20, "format": rnd.choice(["qcow2", "raw"])}],
             "nics": [{"network": "lan"}] if rnd.random() < 0.5 else []}
    return rnd.choice([
        ("create " + g, "POST", "/v1/guests", guest), ("create " + g, "POST", "/v1/guests", guest),
        ("start " + g, "POST", "/v1/guests/%s/start" % g, None), ("start " + g, "POST", "/v1/guests/%s/start" % g, None),
        ("start " + g, "POST", "/v1/guests/%s/start" % g, None),
        ("stop " + g, "POST", "/v1/guests/%s/stop" % g, {"force": True}),
        ("restart " + g, "POST", "/v1/guests/%s/restart" % g, {"force": True}),
        ("delete " + g, "DELETE", "/v1/guests/%s?now=true&force=true" % g, None),
        ("trash " + g, "DELETE", "/v1/guests/%s?force=true" % g, None),
        ("undelete " + g, "POST", "/v1/guests/%s/undelete" % g, None),
        ("disk " + d, "POST", "/v1/disks", {"name": d, "size": 4 << 20, "format": rnd.choice(["qcow2", "raw"])}),
        ("disk rm " + d, "DELETE", "/v1/disks/" + d, None),
        ("convert " + d, "POST", "/v1/disks/%s/convert" % d, {"name": "c" + d, "format": rnd.choice(["qcow2", "raw"])}),
        ("disk rm c" + d, "DELETE", "/v1/disks/c" + d, None),
        ("resize " + d, "POST", "/v1/disks/%s/resize" % d, {"size": rnd.choice([8 << 20, 16 << 20])}),
        ("check " + d, "POST", "/v1/disks/%s/check" % d, {}),
        ("import " + i, "upload", i, None), ("import " + i, "upload", i, None),
        ("image rm " + i, "DELETE", "/v1/images/" + i, None),
        ("net n0", "POST", "/v1/networks", {"name": "n0", "cidr": "10.91.0.1/24", "dhcp": rnd.random() < 0.5}),
        ("net rm n0", "DELETE", "/v1/networks/n0", None),
        ("forward to " + g, "POST", "/v1/forwards", {"guest": g, "host_port": 8000 + rnd.randrange(3), "guest_port": 80}),
        ("forward rm", "DELETE", "/v1/forwards/tcp-800%d" % rnd.randrange(3), None)])


def run(a):
    what, method, path, body = a
    if method == "upload":
        upload(path)
        history.append(what)
    else:
        st, answer = quiet(method, path, body)
        history.append("%s: %s %s" % (what, st, (answer or {}).get("code", "") if isinstance(answer, dict) else ""))


# ---- what has to be so ----
def items(kind):
    st, j = call("GET", "/v1/%s?limit=10000" % kind)
    if st != 200:
        raise OSError("list of %s: %d" % (kind, st))
    return j["items"]


def unsettled():
    try:
        for g in items("guests"):
            if g["state"] in ("starting", "stopping", "pausing"):
                return "guest %s stays %s" % (g["name"], g["state"])
        for o in items("operations"):
            if o["state"] in ("queued", "running"):
                return "operation %s %s stays %s" % (o["verb"], o["target"], o["state"])
        for k in ("disks", "images"):
            for o in items(k):
                if o["state"] in ("busy", "checking", "removing"):
                    return "%s %s stays %s" % (k, o["name"], o["state"])
        for n in items("networks") + items("forwards"):
            if n["state"] != "up" and not (n["state"] == "down" and n.get("reason")):
                return "%s stays %s: %s" % (n["name"], n["state"], n.get("reason"))
    except (OSError, http.client.HTTPException, ValueError, TypeError) as e:
        return "no answer: %s" % e
    return ""


def disagree():
    guests, disks, images, nets, forwards = (items(k) for k in ("guests", "disks", "images", "networks", "forwards"))
    guests += [g for g in call("GET", "/v1/guests?state=deleted&limit=10000")[1]["items"] if g not in guests]
    # files and records
    want = {d["name"] + "." + d["format"] for d in disks} | {i["name"] + ".img" for i in images if i["state"] == "ready"}
    may = {i["name"] + ".img" for i in images}
    have = set(os.listdir(POOL))
    if want - have:
        return "on record, and no file: %s" % sorted(want - have)
    if have - want - may:
        return "a file, and no record: %s" % sorted(have - want - may)
    for d in disks:
        if d["state"] != "ready":
            return "disk %s is %s" % (d["name"], d["state"])
    names = {g["name"] for g in guests}
    for d in disks:
        if d.get("guest") and d["guest"] not in names:
            return "disk %s is of guest %s, which is not there" % (d["name"], d["guest"])
    for g in guests:
        for d in g.get("disks", []):
            if d["disk"].split("/")[-1] not in {x["name"] for x in disks}:
                return "guest %s lists disk %s, which is not there" % (g["name"], d["disk"])
    # processes
    running = {g["uuid"]: g for g in guests if g["state"] in ("running", "paused")}
    live = listening_guests()
    if set(live) != set(running):
        return "guests that run on record %s, in truth %s" % (sorted(running), sorted(live))
    for u, p in live.items():
        if running[u].get("pid") != p:
            return "guest %s is pid %s on record, %s in truth" % (u, running[u].get("pid"), p)
    all_ = processes()
    stray = [c for p, (c, up, exe) in all_.items() if exe == BUILD + "/vmd-image" and up in (1, daemon.pid)]
    if stray:
        return "image jobs are left: %s" % stray
    mine = [p for p, (c, up, exe) in all_.items() if exe == BUILD + "/vmd-guest" and ours(p)]
    if len(mine) != len(live):
        return "processes of guests: %s, with sockets: %s" % (mine, live)
    socks = {f[:-5] for f in os.listdir(RUN + "/guests") if f.endswith(".sock")}
    if socks - set(live):
        return "sockets of no guest: %s" % sorted(socks - set(live))
    # uids and control groups
    uids = [os.stat("/proc/%d" % p).st_uid for p in live.values()]
    if len(set(uids)) != len(uids):
        return "two guests share a uid: %s" % uids
    groups = [d for d in cgroups() if d.split(".")[-1].split("-", 1)[-1] or True]
    for u in live:
        groups = [d for d in groups if u not in d]
    left = [d for d in groups if re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", os.path.basename(d))]
    if left:
        return "control groups of no guest: %s" % left
    # the network
    links = {l["ifname"] for l in json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, text=True).stdout)}
    taps = {l for l in links if l.startswith("vt")}
    want = {"vt" + u[:8] + "%x" % n for u, g in running.items() for n in range(len(g.get("nics", [])))}
    if taps != want:
        return "taps %s, and by the records %s" % (sorted(taps), sorted(want))
    bridges = {l for l in links if l.startswith("vmbr-")}
    if bridges != {n["bridge"] for n in nets}:
        return "bridges %s, and by the records %s" % (sorted(bridges), sorted(n["bridge"] for n in nets))
    servers = sorted(re.search(r"/dhcp/([^/]+)/pid", c).group(1) for c, _, _ in all_.values() if "dnsmasq" in c and STATE in c)
    if servers != sorted(n["name"] for n in nets if n.get("dhcp")):
        return "DHCP servers of %s, networks %s" % (servers, [n["name"] for n in nets])
    if set(os.listdir(STATE + "/dhcp")) - {n["name"] for n in nets if n.get("dhcp")}:
        return "directories of DHCP: %s" % os.listdir(STATE + "/dhcp")
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout
    ports = sorted(set(re.findall(r"dport (\d+) dnat to ([\d.]+)", rules)))
    by = sorted((str(f["host_port"]), f["guest_ip"]) for f in forwards if f["state"] == "up")
    if ports != by:
        return "rules lead to %s, records to %s" % (ports, by)
    return ""


def ours(pid):
    try:
        return any(RUN in os.readlink("/proc/%d/fd/%s" % (pid, f)) or STATE in os.readlink("/proc/%d/fd/%s" % (pid, f))
                   for f in os.listdir("/proc/%d/fd" % pid))
    except OSError:
        return False


def cgroups():
    crc = 0xFFFFFFFF
    for b in RUN.encode():
        crc ^= b
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    name = "vmd-%08x" % (crc ^ 0xFFFFFFFF)
    return subprocess.run(["find", "/sys/fs/cgroup", "-type", "d", "-path", "*/%s*" % name], capture_output=True, text=True).stdout.split()


def never_lost(sure):
    """what was settled and was not asked to go is there"""
    there = {g["uuid"] for g in items("guests")}
    return sorted(sure - there)


daemon = None
print("seed %d" % SEED)
os.makedirs(STATE, exist_ok=True)
start()
if call("POST", "/v1/networks", {"name": "lan", "cidr": "10.90.0.1/24"})[0] != 201:
    fail("the network is made")
for name, data in (("idle", open(KERNEL, "rb").read()), ("base", os.urandom(1 << 16) + bytes(1 << 20))):
    call("POST", "/v1/images", {"name": name, "kind": "kernel" if name == "idle" else "disk", "format": "raw"})
    st, j = call("PUT", "/v1/images/%s/content" % name, raw=data, headers={"Prefer": "wait=10"})
    if st >= 300:
        fail("import of %s: %s %s" % (name, st, j))
# one guest that nobody is asked to touch: its process outlives everything but its own death
st, j = call("POST", "/v1/guests", {"name": "keeper", "accel": "soft", "memory": 32 << 20, "kernel": "idle", "nics": [{"network": "lan"}],
                                    "disks": [{"image": "base"}], "restart": "always"})
if st >= 300:
    fail("the keeper starts: %s %s" % (st, j))
st, j = call("POST", "/v1/guests/keeper/start", headers={"Prefer": "wait=20"})
if st != 200:
    fail("the keeper starts: %s %s" % (st, j))
keeper = call("GET", "/v1/guests/keeper")[1]["uuid"]
end = time.monotonic() + SECONDS
kills = looks = 0
while time.monotonic() < end:
    for _ in range(rnd.randrange(2, 6)):
        acts = [threading.Thread(target=run, args=(action(),)) for _ in range(rnd.randrange(1, 4))]
        for t in acts:
            t.start()
        time.sleep(rnd.random() ** 2 * 0.15)
        victim()
        kills += 1
        for t in acts:
            t.join(40)
            if t.is_alive():
                fail("a request is never answered")
    why = until(25, unsettled)
    if why:
        fail("it does not settle: " + why)
    why = until(20, lambda: unsettled() or disagree())
    if why:
        fail(why)
    if never_lost({keeper}):
        fail("the keeper is lost")
    looks += 1
    history.append("-- looked at, well")
print("%d kills, %d looks, all well" % (kills, looks))
for g in items("guests"):
    quiet("DELETE", "/v1/guests/%s?now=true&force=true" % g["uuid"], headers={"Prefer": "wait=10"})
for f in items("forwards"):
    quiet("DELETE", "/v1/forwards/" + f["name"])
for n in items("networks"):
    quiet("DELETE", "/v1/networks/" + n["name"])
why = until(10, lambda: disagree() or ("guests are left" if items("guests") else ""))
if why:
    fail("at the end: " + why)
daemon.terminate()
daemon.wait()
if cgroups():
    print("FAILED: control groups are left: %s" % cgroups())
    sys.exit(1)
