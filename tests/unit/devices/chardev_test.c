/* chardev_test.c - every kind of far side of a port, with a real peer: bytes of all values both ways,
 * peers that die, that are slow, that come back, that come late.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "devices/chardev.h"
#include "virtio_driver.h"

#define INPUT_MAX 8192u

/* The guest's side of a port. */
struct owner {
	uint8_t in[INPUT_MAX];
	size_t nin, room; /* room: how much more it takes */
	int carrier, changes, writable;
};

static size_t owner_room(void *arg)
{
	return ((struct owner *)arg)->room;
}

static void owner_receive(void *arg, const uint8_t *p, size_t len)
{
	struct owner *o = arg;

	assert_true(len <= o->room && o->nin + len <= INPUT_MAX);
	memcpy(o->in + o->nin, p, len);
	o->nin += len;
	o->room -= len;
}

static void owner_connected(void *arg, bool on)
{
	struct owner *o = arg;

	o->carrier = on;
	o->changes++;
}

static void owner_writable(void *arg)
{
	((struct owner *)arg)->writable++;
}

static const struct chardev_owner_ops owner_ops = {
	.room = owner_room,
	.receive = owner_receive,
	.connected = owner_connected,
	.writable = owner_writable,
};

struct port {
	struct vd_machine m;
	struct chardev *c;
	struct owner o;
};

static struct chardev *port_new(struct vd_machine *m, const char *id, struct owner *o,
				enum chardev_kind kind, int fd, size_t scrollback)
{
	struct chardev_config cfg = { .kind = kind, .fd = fd, .scrollback_bytes = scrollback };
	struct err e = { 0 };
	struct chardev *c;

	*o = (struct owner){ .room = INPUT_MAX };
	c = chardev_new(m->vm, id, &cfg, &owner_ops, o, &e);
	if (!c)
		fail_msg("%s", e.detail);
	return c;
}

static void port_start(struct port *p, enum chardev_kind kind, int fd, size_t scrollback)
{
	signal(SIGPIPE, SIG_IGN);
	vd_machine_init(&p->m);
	p->c = port_new(&p->m, "serial0", &p->o, kind, fd, scrollback);
}

static void port_end(struct port *p)
{
	chardev_free(p->c);
	vd_machine_fini(&p->m);
}

static size_t port_write(struct port *p, const void *bytes, size_t len)
{
	size_t n;

	vm_lock(p->m.vm);
	n = chardev_write(p->c, bytes, len);
	vm_unlock(p->m.vm);
	return n;
}

static void port_attach(struct port *p, int fd, bool read_only)
{
	struct err e = { 0 };

	vm_lock(p->m.vm);
	assert_int_equal(chardev_attach(p->c, fd, read_only, &e), 0);
	vm_unlock(p->m.vm);
}

static void port_room(struct port *p, size_t room)
{
	vm_lock(p->m.vm);
	p->o.room = room;
	chardev_room(p->c);
	vm_unlock(p->m.vm);
}

static uint64_t port_dropped(struct port *p)
{
	uint64_t in, out, dropped;

	chardev_stats(p->c, &in, &out, &dropped);
	return dropped;
}

/* Rounds of the loop until @cond, at most 5 s. */
#define until(p, cond) \
	do { \
		uint64_t end_ = clock_mono_ns() + 5 * NS_PER_S; \
		while (!(cond) && clock_mono_ns() < end_) \
			loop_run_once((p)->m.loop, 5); \
		assert_true(cond); \
	} while (0)

/* Exactly @len bytes come out of @fd while the loop runs. */
static void peer_expect(struct port *p, int fd, const void *want, size_t len)
{
	uint64_t end = clock_mono_ns() + 5 * NS_PER_S;
	uint8_t got[INPUT_MAX];
	size_t n = 0;

	assert_true(len <= sizeof(got));
	while (n < len && clock_mono_ns() < end) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		ssize_t r;

		loop_run_once(p->m.loop, 0);
		if (poll(&pfd, 1, 2) != 1)
			continue;
		r = read(fd, got + n, len - n);
		if (r == 0)
			break;
		n += r > 0 ? (size_t)r : 0;
	}
	assert_int_equal(n, len);
	assert_memory_equal(got, want, len);
}

static void all_bytes(uint8_t b[256])
{
	for (unsigned i = 0; i < 256; i++)
		b[i] = (uint8_t)i;
}

static void both_ways(struct port *p, int peer)
{
	uint8_t b[256];

	all_bytes(b);
	assert_int_equal(port_write(p, b, sizeof(b)), sizeof(b));
	peer_expect(p, peer, b, sizeof(b));
	p->o.nin = 0;
	port_room(p, INPUT_MAX);
	assert_int_equal(write(peer, b, sizeof(b)), sizeof(b));
	until(p, p->o.nin == sizeof(b));
	assert_memory_equal(p->o.in, b, sizeof(b));
}

static void pair_make(int sv[2])
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
}

static int listener_make(bool tcp, struct sockaddr_storage *ss, socklen_t *len)
{
	int fd = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*ss = (struct sockaddr_storage){ .ss_family = tcp ? AF_INET : AF_UNIX };
	*len = tcp ? sizeof(struct sockaddr_in) : sizeof(sa_family_t);
	if (tcp)
		((struct sockaddr_in *)(void *)ss)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(fd, (struct sockaddr *)ss, *len), 0);
	assert_int_equal(listen(fd, 8), 0);
	*len = sizeof(*ss);
	assert_int_equal(getsockname(fd, (struct sockaddr *)ss, len), 0);
	return fd;
}

static int client_make(const struct sockaddr_storage *ss, socklen_t len)
{
	int fd = socket(ss->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (const struct sockaddr *)ss, len), 0);
	return fd;
}

static void pty_make(int *master, int *slave)
{
	struct termios t;

	assert_int_equal(openpty(master, slave, NULL, NULL, NULL), 0);
	assert_int_equal(tcgetattr(*slave, &t), 0);
	cfmakeraw(&t);
	assert_int_equal(tcsetattr(*slave, TCSANOW, &t), 0);
}

/* ---- kinds ---- */

static void sockets_carry_all_bytes_connected_or_accepted(void **s)
{
	for (int tcp = 0; tcp < 2; tcp++) {
		struct sockaddr_storage ss;
		struct port p;
		socklen_t len;
		int l = listener_make(tcp, &ss, &len), peer, fd;

		/* the port connected to a listener of somebody's */
		fd = client_make(&ss, len);
		peer = accept(l, NULL, NULL);
		port_start(&p, CHARDEV_STREAM, fd, 0);
		assert_int_equal(p.o.carrier, 1);
		both_ways(&p, peer);
		port_end(&p);
		close(peer);
		/* the port listens, and somebody connects */
		port_start(&p, CHARDEV_LISTEN, l, 0);
		assert_int_equal(p.o.carrier, 0);
		peer = client_make(&ss, len);
		until(&p, p.o.carrier == 1);
		both_ways(&p, peer);
		/* goes, and another comes: it gets what it missed, then all that is new */
		close(peer);
		until(&p, p.o.carrier == 0);
		peer = client_make(&ss, len);
		until(&p, p.o.carrier == 1);
		{
			uint8_t b[256];

			all_bytes(b);
			peer_expect(&p, peer, b, sizeof(b));
		}
		both_ways(&p, peer);
		port_end(&p);
		close(peer);
	}
}

static void a_pty_carries_all_bytes_and_survives_its_user(void **s)
{
	int master, slave;
	char name[64];
	struct port p;

	pty_make(&master, &slave);
	assert_int_equal(ptsname_r(master, name, sizeof(name)), 0);
	port_start(&p, CHARDEV_STREAM, master, 0);
	both_ways(&p, slave);
	/* nobody has it open: the guest goes on, nothing spins */
	close(slave);
	for (int i = 0; i < 5; i++)
		loop_run_once(p.m.loop, 5);
	assert_int_equal(port_write(&p, "lost", 4), 4);
	for (int i = 0; i < 5; i++)
		loop_run_once(p.m.loop, 5);
	assert_int_equal(loop_run_once(p.m.loop, 20), 0);
	/* opened again: works as before */
	slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	assert_true(slave >= 0);
	tcflush(slave, TCIOFLUSH);
	both_ways(&p, slave);
	port_end(&p);
	close(slave);
}

/* The other side of a pty pair is a tty like any other. */
static void a_tty_carries_all_bytes(void **s)
{
	int master, slave;
	struct port p;

	pty_make(&master, &slave);
	port_start(&p, CHARDEV_STREAM, slave, 0);
	both_ways(&p, master);
	/* unplugged: the line hangs up */
	close(master);
	for (int i = 0; i < 5; i++)
		loop_run_once(p.m.loop, 5);
	assert_int_equal(port_write(&p, "lost", 4), 4);
	for (int i = 0; i < 5; i++)
		loop_run_once(p.m.loop, 5);
	assert_int_equal(loop_run_once(p.m.loop, 20), 0);
	port_end(&p);
}

static void two_guests_ports_lead_to_each_other(void **s)
{
	struct owner other;
	struct chardev *c2;
	struct port p;
	uint8_t b[256];
	int sv[2];

	all_bytes(b);
	pair_make(sv);
	port_start(&p, CHARDEV_STREAM, sv[0], 0);
	c2 = port_new(&p.m, "serial1", &other, CHARDEV_STREAM, sv[1], 0);
	assert_int_equal(port_write(&p, b, 256), 256);
	until(&p, other.nin == 256);
	assert_memory_equal(other.in, b, 256);
	vm_lock(p.m.vm);
	assert_int_equal(chardev_write(c2, b, 256), 256);
	vm_unlock(p.m.vm);
	until(&p, p.o.nin == 256);
	assert_memory_equal(p.o.in, b, 256);
	/* the other guest ends: the cable is out on this side */
	chardev_free(c2);
	until(&p, p.o.carrier == 0);
	port_end(&p);
}

static void a_file_takes_all_and_a_full_disk_holds_nobody(void **s)
{
	int fd = memfd_create("file", MFD_CLOEXEC), dup_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	uint8_t b[256], *all = malloc(1 << 20), *got = malloc(1 << 20);
	struct port p;
	size_t sent = 0;

	all_bytes(b);
	for (size_t i = 0; i < 1 << 20; i++)
		all[i] = b[(i * 7 + i / 256) % 256];
	port_start(&p, CHARDEV_FILE, fd, 0);
	/* more than the ring: the port takes less, and says when there is room */
	while (sent < 1 << 20) {
		size_t n = port_write(&p, all + sent, (1 << 20) - sent);

		sent += n;
		if (!n) {
			p.o.writable = 0;
			until(&p, p.o.writable > 0);
		}
	}
	port_end(&p);
	assert_int_equal(pread(dup_fd, got, 1 << 20, 0), 1 << 20);
	assert_memory_equal(got, all, 1 << 20);
	close(dup_fd);
	free(all);
	free(got);

	fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
	port_start(&p, CHARDEV_FILE, fd, 0);
	for (int i = 0; i < 100; i++) {
		assert_int_equal(port_write(&p, b, 256), 256);
		loop_run_once(p.m.loop, 0);
	}
	until(&p, port_dropped(&p) == 25600);
	port_end(&p);
}

static void a_log_is_appended_to(void **s)
{
	char path[] = "/tmp/chardev-log-XXXXXX", got[32] = "";
	int fd = mkostemp(path, O_APPEND | O_CLOEXEC);
	struct port p;

	assert_true(fd >= 0);
	for (int i = 0; i < 2; i++) {
		port_start(&p, CHARDEV_LOG, fcntl(fd, F_DUPFD_CLOEXEC, 0), 0);
		assert_int_equal(port_write(&p, i ? "two\n" : "one\n", 4), 4);
		port_end(&p); /* the last bytes go out with the port */
	}
	assert_int_equal(pread(fd, got, sizeof(got), 0), 8);
	assert_string_equal(got, "one\ntwo\n");
	close(fd);
	unlink(path);
}

static void a_port_that_leads_nowhere_keeps_its_end_for_who_comes_late(void **s)
{
	uint8_t all[20000];
	struct port p;
	int sv[2];

	for (unsigned i = 0; i < sizeof(all); i++)
		all[i] = (uint8_t)(i * 31 + i / 256);
	port_start(&p, CHARDEV_NULL, -1, 8192);
	assert_int_equal(port_write(&p, all, sizeof(all)), sizeof(all));
	pair_make(sv);
	port_attach(&p, sv[0], false);
	peer_expect(&p, sv[1], all + sizeof(all) - 8192, 8192);
	both_ways(&p, sv[1]);
	port_end(&p);
	close(sv[1]);
}

/* ---- peers ---- */

static void a_dead_peer_is_replaced_and_misses_nothing_the_ring_holds(void **s)
{
	struct chardev_config cfg = { .kind = CHARDEV_STREAM };
	struct err e = { 0 };
	struct port p;
	int sv[2];

	pair_make(sv);
	port_start(&p, CHARDEV_STREAM, sv[0], 0);
	peer_expect(&p, sv[1], "", 0);
	close(sv[1]);
	until(&p, p.o.carrier == 0);
	assert_int_equal(port_write(&p, "while away ", 11), 11);
	for (int i = 0; i < 3; i++)
		loop_run_once(p.m.loop, 2);
	pair_make(sv);
	cfg.fd = sv[0];
	vm_lock(p.m.vm);
	assert_int_equal(chardev_replace(p.c, &cfg, &e), 0);
	vm_unlock(p.m.vm);
	assert_int_equal(p.o.carrier, 1);
	assert_int_equal(port_write(&p, "and after", 9), 9);
	peer_expect(&p, sv[1], "while away and after", 20);
	both_ways(&p, sv[1]);
	/* replaced while alive: the old one is let go */
	{
		int old = sv[1];
		char c;

		pair_make(sv);
		cfg.fd = sv[0];
		vm_lock(p.m.vm);
		assert_int_equal(chardev_replace(p.c, &cfg, &e), 0);
		vm_unlock(p.m.vm);
		assert_int_equal(recv(old, &c, 1, 0), 0);
		close(old);
	}
	port_end(&p);
	close(sv[1]);
}

static void a_slow_peer_never_holds_the_guest(void **s)
{
	const size_t total = 4 << 20;
	uint8_t *all = malloc(total), *got = malloc(total);
	uint64_t end = clock_mono_ns() + 10 * NS_PER_S;
	size_t n = 0, sent = 0;
	struct port p;
	int sv[2];

	for (size_t i = 0; i < total; i++)
		all[i] = (uint8_t)(i * 131 + i / 251);
	pair_make(sv);
	port_start(&p, CHARDEV_STREAM, sv[0], 0);
	while (sent < total) {
		assert_int_equal(port_write(&p, all + sent, 1024), 1024); /* all, every time */
		sent += 1024;
		loop_run_once(p.m.loop, 0);
	}
	assert_true(port_dropped(&p) > 0);
	/* then it reads: each byte was delivered or is counted as dropped, and the end is there */
	while (n + port_dropped(&p) < total && clock_mono_ns() < end) {
		ssize_t r = recv(sv[1], got + n, total - n, MSG_DONTWAIT);

		n += r > 0 ? (size_t)r : 0;
		loop_run_once(p.m.loop, 0);
	}
	assert_int_equal(n + port_dropped(&p), total);
	assert_memory_equal(got, all, 4096);
	assert_memory_equal(got + n - 4096, all + total - 4096, 4096);
	port_end(&p);
	close(sv[1]);
	free(all);
	free(got);
}

static void one_slow_console_does_not_slow_another(void **s)
{
	uint8_t block[1024];
	struct port p;
	int slow[2], fast[2];

	memset(block, 'x', sizeof(block));
	port_start(&p, CHARDEV_NULL, -1, 0);
	pair_make(slow);
	pair_make(fast);
	port_attach(&p, slow[0], false);
	port_attach(&p, fast[0], false);
	for (int i = 0; i < 2048; i++) {
		assert_int_equal(port_write(&p, block, sizeof(block)), sizeof(block));
		peer_expect(&p, fast[1], block, sizeof(block));
	}
	assert_true(port_dropped(&p) > 0); /* the slow one's */
	port_end(&p);
	close(slow[1]);
	close(fast[1]);
}

static void a_read_only_console_types_nothing(void **s)
{
	struct port p;
	int ro[2], rw[2];

	port_start(&p, CHARDEV_NULL, -1, 0);
	pair_make(ro);
	pair_make(rw);
	port_attach(&p, ro[0], true);
	port_attach(&p, rw[0], false);
	assert_int_equal(write(ro[1], "no", 2), 2);
	until(&p, recv(ro[1], (char[1]){ 0 }, 1, MSG_DONTWAIT | MSG_PEEK) < 0);
	assert_int_equal(write(rw[1], "yes", 3), 3);
	until(&p, p.o.nin == 3);
	assert_memory_equal(p.o.in, "yes", 3);
	assert_int_equal(port_write(&p, "seen", 4), 4);
	peer_expect(&p, ro[1], "seen", 4);
	peer_expect(&p, rw[1], "seen", 4);
	port_end(&p);
	close(ro[1]);
	close(rw[1]);
}

static void input_waits_for_the_guest_and_a_hang_up_does_not(void **s)
{
	uint8_t b[256];
	struct port p;
	int sv[2];

	all_bytes(b);
	pair_make(sv);
	port_start(&p, CHARDEV_STREAM, sv[0], 0);
	p.o.room = 10;
	assert_int_equal(write(sv[1], b, 256), 256);
	until(&p, p.o.nin == 10);
	for (int i = 0; i < 3; i++)
		loop_run_once(p.m.loop, 2);
	assert_int_equal(p.o.nin, 10);
	port_room(&p, 46);
	until(&p, p.o.nin == 56);
	port_room(&p, 1000);
	until(&p, p.o.nin == 256);
	assert_memory_equal(p.o.in, b, 256);
	/* the guest never reads again; the peer goes */
	port_room(&p, 0);
	close(sv[1]);
	until(&p, p.o.carrier == 0);
	port_end(&p);
}

static void the_65th_console_is_refused(void **s)
{
	struct err e = { 0 };
	struct port p;
	int sv[65][2];

	port_start(&p, CHARDEV_NULL, -1, 0);
	for (int i = 0; i < 65; i++)
		pair_make(sv[i]);
	vm_lock(p.m.vm);
	for (int i = 0; i < 64; i++)
		assert_int_equal(chardev_attach(p.c, sv[i][0], false, &e), 0);
	assert_int_equal(chardev_attach(p.c, sv[64][0], false, &e), -EMFILE);
	assert_string_equal(e.code, "too-many-consoles");
	vm_unlock(p.m.vm);
	/* one goes: there is a place again */
	close(sv[0][1]);
	for (int i = 0; i < 5; i++)
		loop_run_once(p.m.loop, 5);
	port_attach(&p, sv[64][0], false);
	port_end(&p);
	for (int i = 1; i < 65; i++)
		close(sv[i][1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sockets_carry_all_bytes_connected_or_accepted),
		cmocka_unit_test(a_pty_carries_all_bytes_and_survives_its_user),
		cmocka_unit_test(a_tty_carries_all_bytes),
		cmocka_unit_test(two_guests_ports_lead_to_each_other),
		cmocka_unit_test(a_file_takes_all_and_a_full_disk_holds_nobody),
		cmocka_unit_test(a_log_is_appended_to),
		cmocka_unit_test(a_port_that_leads_nowhere_keeps_its_end_for_who_comes_late),
		cmocka_unit_test(a_dead_peer_is_replaced_and_misses_nothing_the_ring_holds),
		cmocka_unit_test(a_slow_peer_never_holds_the_guest),
		cmocka_unit_test(one_slow_console_does_not_slow_another),
		cmocka_unit_test(a_read_only_console_types_nothing),
		cmocka_unit_test(input_waits_for_the_guest_and_a_hang_up_does_not),
		cmocka_unit_test(the_65th_console_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
