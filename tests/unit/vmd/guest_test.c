/* guest_test.c - the guest process as the daemon meets it: configuration, build, run, resize, save,
 * restore, a reboot that stops it.
 *
 * The process is a real one (forked, with its seccomp filters), driven over its socket; the guests
 * are a few instructions on the software CPU. Sanitizers make calls of their own that the filters
 * refuse: there these tests are skipped.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/units.h"
#include "vmd/guest/guest.h"
#include "vmd/guest/lockdown.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define MEMORY	 (64 * MIB)
#define LOAD_AT	 0x1000000u
#define WAIT_S	 60
#define DISK_OLD (1 * MIB)

/* Counts in memory at 32 MiB, and writes each count's low four bits as a letter to the first serial
 * port. */
static const uint8_t counting[] = {
	0x66, 0xba, 0xf8, 0x03,			  /* mov $0x3f8, %dx */
	0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x02, /* mov 0x2000000, %eax */
	0xff, 0xc0,				  /* inc %eax */
	0x89, 0x04, 0x25, 0x00, 0x00, 0x00, 0x02, /* mov %eax, 0x2000000 */
	0x24, 0x0f, 0x04, 0x41, 0xee,		  /* and $15, %al; add $'A', %al; out %al, %dx */
	0xb9, 0x40, 0x0d, 0x03, 0x00,		  /* mov $200000, %ecx */
	0xff, 0xc9, 0x75, 0xfc,			  /* dec %ecx; jnz */
	0xeb, 0xe0,				  /* jmp, to the load */
};
/* Reset by the keyboard controller, then wait. */
static const uint8_t rebooting[] = {
	0xb0, 0xfe, 0xe6, 0x64, /* mov $0xfe, %al; out %al, $0x64 */
	0xf4, 0xeb, 0xfd,	/* hlt; jmp */
};

static int kernel_fd(const uint8_t *code, size_t len)
{
	Elf64_Ehdr eh = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
			  .e_type = ET_EXEC,
			  .e_machine = EM_X86_64,
			  .e_version = EV_CURRENT,
			  .e_entry = LOAD_AT,
			  .e_phoff = sizeof(eh),
			  .e_ehsize = sizeof(eh),
			  .e_phentsize = sizeof(Elf64_Phdr),
			  .e_phnum = 1 };
	Elf64_Phdr ph = { .p_type = PT_LOAD,
			  .p_flags = PF_R | PF_X,
			  .p_offset = sizeof(eh) + sizeof(ph),
			  .p_vaddr = LOAD_AT,
			  .p_paddr = LOAD_AT,
			  .p_filesz = len,
			  .p_memsz = len,
			  .p_align = 1 };
	int fd = memfd_create("kernel", MFD_CLOEXEC);

	assert_int_equal(write(fd, &eh, sizeof(eh)), sizeof(eh));
	assert_int_equal(write(fd, &ph, sizeof(ph)), sizeof(ph));
	assert_int_equal(write(fd, code, len), len);
	return fd;
}

struct proc {
	pid_t pid;
	int sock, serial;
	uint32_t id;
	struct wire_buf in;
	struct msg_g_event event; /* the last one */
	unsigned nevents;
};

/* As main.c: one guest in one process. */
static void guest_child(int listen_fd)
{
	struct guest g = { .listen_fd = listen_fd,
			   .kvm_fd = -1,
			   .listen_w = LOOP_FD_NONE,
			   .phase = GUEST_NEW,
			   .peer_uid = getuid() };
	struct err e = { 0 };

	signal(SIGPIPE, SIG_IGN);
	alarm(WAIT_S);
	g.loop = loop_new();
	g.cfg = guest_config_new();
	if (guest_link_start(&g, &e) < 0)
		_exit(1);
	loop_run(g.loop);
	_exit(g.quitting ? 0 : 1);
}

static void proc_start(struct proc *p)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	socklen_t len = sizeof(sa);
	struct timeval tv = { .tv_sec = WAIT_S };
	int l = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	*p = (struct proc){ .serial = -1 };
	assert_int_equal(bind(l, (struct sockaddr *)&sa, sizeof(sa_family_t)), 0);
	assert_int_equal(listen(l, 4), 0);
	assert_int_equal(getsockname(l, (struct sockaddr *)&sa, &len), 0);
	p->pid = fork();
	if (!p->pid)
		guest_child(l);
	p->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(p->sock, (struct sockaddr *)&sa, len), 0);
	setsockopt(p->sock, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	close(l);
}

static int proc_end(struct proc *p)
{
	int status;

	close(p->sock);
	close_fd(&p->serial);
	wire_buf_clear(&p->in);
	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	return status;
}

/* The next message that answers @id; events on the way are kept. Its type. */
static uint16_t proc_reply(struct proc *p, uint32_t id)
{
	for (;;) {
		wire_buf_clear(&p->in);
		if (wire_recv(p->sock, &p->in, WIRE_FDS_MAX) != 1)
			return 0;
		if (p->in.type == MSG_g_event) {
			assert_int_equal(msg_g_event_decode(&p->event, &p->in), 0);
			p->nevents++;
			if (!id)
				return MSG_g_event;
		} else if (p->in.id == id) {
			return p->in.type;
		}
	}
}

/* Ask, and wait for the answer: 0, or its error number with @code. */
static int proc_ask(struct proc *p, uint16_t type, const void *msg, char code[48])
{
	struct wire_buf b = { 0 };
	struct msg_result r;

	assert_int_equal(proto_encode(type, msg, ++p->id, &b), 0);
	if (wire_send(p->sock, &b) < 0)
		return EPIPE;
	wire_buf_clear(&b);
	if (proc_reply(p, p->id) != MSG_result)
		return p->in.type == MSG_g_ready ? 0 : EPIPE;
	assert_int_equal(msg_result_decode(&r, &p->in), 0);
	if (code)
		memcpy(code, r.code, sizeof(r.code));
	if (r.num)
		print_message("%s\n", r.detail);
	return (int)r.num;
}

struct options {
	const uint8_t *code;
	size_t len;
	uint64_t memory;
	bool reboot_stops;
	int disk;		 /* or -1 */
	int state_fd, memory_fd; /* to go on from, or -1 */
};

static void proc_configure(struct proc *p, const struct options *o)
{
	struct msg_g_config c = { .name = "t",
				  .accel = "soft",
				  .vcpus = 1,
				  .memory_bytes = o->memory ? o->memory : MEMORY,
				  .memory_fd = -1,
				  .kvm_fd = -1,
				  .reboot_stops = o->reboot_stops };
	struct msg_g_boot b = { .kernel_fd = kernel_fd(o->code, o->len), .initrd_fd = -1 };
	struct msg_g_port port = { .name = "serial0", .kind = CHARDEV_STREAM };
	struct msg_g_disk disk = { .name = "vda", .driver = "file", .label = "vda", .fd = o->disk };
	struct msg_g_load load = { .state_fd = o->state_fd, .memory_fd = o->memory_fd };
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	p->serial = sv[0];
	port.fd = sv[1];
	assert_int_equal(proc_ask(p, MSG_g_config, &c, NULL), 0);
	assert_int_equal(proc_ask(p, MSG_g_boot, &b, NULL), 0);
	assert_int_equal(proc_ask(p, MSG_g_port, &port, NULL), 0);
	close(sv[1]);
	close(b.kernel_fd);
	if (o->disk >= 0)
		assert_int_equal(proc_ask(p, MSG_g_disk, &disk, NULL), 0);
	if (o->state_fd >= 0)
		assert_int_equal(proc_ask(p, MSG_g_load, &load, NULL), 0);
}

static int proc_build(struct proc *p, bool start, char code[48])
{
	struct msg_g_build m = { .start = start };

	return proc_ask(p, MSG_g_build, &m, code);
}

static void proc_simple(struct proc *p, uint16_t type)
{
	uint32_t none = 0;

	assert_int_equal(proc_ask(p, type, &none, NULL), 0);
}

/* At least @n letters more, each the one after the last. Returns the last. */
static char serial_letters(struct proc *p, char last, unsigned n)
{
	char c;

	while (n--) {
		struct pollfd pfd = { .fd = p->serial, .events = POLLIN };

		assert_int_equal(poll(&pfd, 1, WAIT_S * 1000), 1);
		assert_int_equal(read(p->serial, &c, 1), 1);
		if (last)
			assert_int_equal(c, 'A' + (last - 'A' + 1) % 16);
		last = c;
	}
	return last;
}

/* What has come already. */
static char serial_rest(struct proc *p, char last)
{
	char c;

	while (recv(p->serial, &c, 1, MSG_DONTWAIT) == 1) {
		assert_int_equal(c, 'A' + (last - 'A' + 1) % 16);
		last = c;
	}
	return last;
}

static void need_filters(void)
{
	if (SANITIZED)
		skip();
}

static void a_saved_guest_goes_on_where_it_was(void **s)
{
	struct options o = { counting, sizeof(counting), 0, false, -1, -1, -1 };
	struct msg_g_save save = { .state_fd = memfd_create("state", MFD_CLOEXEC),
				   .memory_fd = memfd_create("memory", MFD_CLOEXEC) };
	struct proc a, b;
	struct stat st;
	char last;

	need_filters();
	proc_start(&a);
	proc_configure(&a, &o);
	assert_int_equal(proc_build(&a, true, NULL), 0);
	last = serial_letters(&a, 0, 20);
	assert_int_equal(proc_ask(&a, MSG_g_save, &save, NULL), 0);
	last = serial_rest(&a, last);
	/* RAM and 32 bytes; what the guest never touched takes no room */
	assert_int_equal(fstat(save.memory_fd, &st), 0);
	assert_int_equal(st.st_size, MEMORY + 32);
	assert_true((uint64_t)st.st_blocks * 512 < MEMORY / 8);
	/* a restore, in another process: the count goes on */
	o.state_fd = save.state_fd;
	o.memory_fd = save.memory_fd;
	proc_start(&b);
	proc_configure(&b, &o);
	assert_int_equal(proc_build(&b, true, NULL), 0);
	serial_letters(&b, last, 20);
	proc_simple(&b, MSG_g_quit);
	assert_int_equal(proc_end(&b), 0);
	/* the one that was saved may run on as well, and be saved again */
	proc_simple(&a, MSG_g_start);
	last = serial_letters(&a, last, 20);
	assert_int_equal(proc_ask(&a, MSG_g_save, &save, NULL), 0);
	proc_simple(&a, MSG_g_quit);
	assert_int_equal(proc_end(&a), 0);
	last = serial_rest(&a, last);
	proc_start(&b);
	proc_configure(&b, &o);
	assert_int_equal(proc_build(&b, false, NULL), 0);
	proc_simple(&b, MSG_g_start);
	proc_simple(&b, MSG_g_quit);
	assert_int_equal(proc_end(&b), 0);
	close(save.state_fd);
	close(save.memory_fd);
}

static void load_refused(struct options *o, int num, const char *want)
{
	struct proc p;
	char code[48] = "";

	proc_start(&p);
	proc_configure(&p, o);
	assert_int_equal(proc_build(&p, true, code), num);
	assert_string_equal(code, want);
	assert_int_not_equal(proc_end(&p), 0); /* nothing half-made lives on */
}

static void a_saved_state_that_does_not_fit_is_refused(void **s)
{
	struct options o = { counting, sizeof(counting), 0, false, -1, -1, -1 };
	struct msg_g_save one = { .state_fd = memfd_create("state", MFD_CLOEXEC),
				  .memory_fd = memfd_create("memory", MFD_CLOEXEC) };
	struct msg_g_save two = { .state_fd = memfd_create("state", MFD_CLOEXEC),
				  .memory_fd = memfd_create("memory", MFD_CLOEXEC) };
	struct proc p;
	struct stat st;
	uint8_t byte;

	need_filters();
	proc_start(&p);
	proc_configure(&p, &o);
	assert_int_equal(proc_build(&p, true, NULL), 0);
	serial_letters(&p, 0, 2);
	assert_int_equal(proc_ask(&p, MSG_g_save, &one, NULL), 0);
	assert_int_equal(proc_ask(&p, MSG_g_save, &two, NULL), 0);
	proc_simple(&p, MSG_g_quit);
	assert_int_equal(proc_end(&p), 0);
	/* state of one save, memory of another */
	o.state_fd = one.state_fd;
	o.memory_fd = two.memory_fd;
	load_refused(&o, EBADMSG, "saved-state-bad");
	/* another size of memory */
	o.memory_fd = one.memory_fd;
	o.memory = 2 * MEMORY;
	load_refused(&o, EBADMSG, "saved-state-bad");
	o.memory = 0;
	/* a bit flipped in the middle of the state */
	assert_int_equal(fstat(one.state_fd, &st), 0);
	assert_int_equal(pread(one.state_fd, &byte, 1, st.st_size / 2), 1);
	byte ^= 1;
	assert_int_equal(pwrite(one.state_fd, &byte, 1, st.st_size / 2), 1);
	load_refused(&o, EBADMSG, "state-corrupt");
	/* torn files */
	o.state_fd = two.state_fd;
	o.memory_fd = two.memory_fd;
	assert_int_equal(ftruncate(two.memory_fd, MEMORY), 0);
	load_refused(&o, EBADMSG, "saved-state-bad");
	assert_int_equal(ftruncate(two.state_fd, 0), 0);
	load_refused(&o, EBADMSG, "saved-state-bad");
	close(one.state_fd);
	close(one.memory_fd);
	close(two.state_fd);
	close(two.memory_fd);
}

static void a_save_that_cannot_be_written_leaves_the_guest_whole(void **s)
{
	struct options o = { counting, sizeof(counting), 0, false, -1, -1, -1 };
	int full = open("/dev/full", O_RDWR | O_CLOEXEC);
	struct msg_g_save save = { .state_fd = full, .memory_fd = full };
	struct proc p;
	char last;

	need_filters();
	proc_start(&p);
	proc_configure(&p, &o);
	assert_int_equal(proc_build(&p, true, NULL), 0);
	last = serial_letters(&p, 0, 3);
	assert_int_not_equal(proc_ask(&p, MSG_g_save, &save, NULL), 0);
	proc_simple(&p, MSG_g_start);
	serial_letters(&p, last, 5);
	proc_simple(&p, MSG_g_quit);
	assert_int_equal(proc_end(&p), 0);
	close(full);
}

static void a_disk_of_a_running_guest_grows(void **s)
{
	struct options o = { counting, sizeof(counting), 0, false, -1, -1, -1 };
	struct msg_g_disk_resize m = { .name = "vda", .size_bytes = 4 * DISK_OLD };
	struct msg_g_disk_limit limit = { .name = "vda", .iops = 1000 };
	struct proc p;
	struct stat st;

	need_filters();
	o.disk = memfd_create("disk", MFD_CLOEXEC);
	assert_int_equal(ftruncate(o.disk, DISK_OLD), 0);
	proc_start(&p);
	proc_configure(&p, &o);
	assert_int_equal(proc_build(&p, true, NULL), 0);
	serial_letters(&p, 0, 2);
	assert_int_equal(proc_ask(&p, MSG_g_disk_resize, &m, NULL), 0);
	assert_int_equal(fstat(o.disk, &st), 0);
	assert_int_equal(st.st_size, 4 * DISK_OLD);
	m.size_bytes = DISK_OLD;
	assert_int_equal(proc_ask(&p, MSG_g_disk_resize, &m, NULL), EINVAL);
	assert_int_equal(proc_ask(&p, MSG_g_disk_limit, &limit, NULL), 0);
	strcpy(limit.name, "vdz");
	assert_int_equal(proc_ask(&p, MSG_g_disk_limit, &limit, NULL), ENOENT);
	strcpy(m.name, "vdz");
	assert_int_equal(proc_ask(&p, MSG_g_disk_resize, &m, NULL), ENOENT);
	proc_simple(&p, MSG_g_quit);
	assert_int_equal(proc_end(&p), 0);
	close(o.disk);
}

static void a_reboot_runs_on_or_stops_as_configured(void **s)
{
	struct options o = { rebooting, sizeof(rebooting), 0, false, -1, -1, -1 };
	struct proc p;

	need_filters();
	for (int stops = 0; stops < 2; stops++) {
		o.reboot_stops = stops;
		proc_start(&p);
		proc_configure(&p, &o);
		assert_int_equal(proc_build(&p, true, NULL), 0);
		while (p.nevents < (stops ? 1u : 3u))
			assert_int_equal(proc_reply(&p, 0), MSG_g_event);
		assert_string_equal(p.event.kind, "reboot");
		assert_int_equal(p.event.state, stops ? GUEST_STOPPED : GUEST_RUNNING);
		proc_simple(&p, MSG_g_quit);
		assert_int_equal(proc_end(&p), 0);
		assert_true(!stops || p.nevents == 1);
	}
}

/* ---- what the threads may do ---- */

static int queue_switch(int tap, bool on)
{
	struct ifreq ifr = { .ifr_flags = (short)(on ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE) };

	return ioctl(tap, TUNSETQUEUE, &ifr) < 0 ? errno : 0;
}

/* On the I/O thread. Bits: what did not go as it should. */
static void *io_acts(void *arg)
{
	const int *fds = arg;
	uintptr_t bad = 0;

	if (lockdown_io() < 0)
		return (void *)1;
	if (fds[1] >= 0 && (queue_switch(fds[1], false) || queue_switch(fds[1], true)))
		bad |= 2;
	if (accept4(fds[0], NULL, NULL, 0) >= 0 || errno != EPERM)
		bad |= 4;
	if (dup(fds[0]) >= 0 || errno != EPERM)
		bad |= 8;
	if (memfd_create("x", 0) >= 0 || errno != EPERM)
		bad |= 16;
	return (void *)bad;
}

static void the_io_thread_may_do_less_than_the_process(void **s)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE };
	int fds[2] = { -1, -1 }, status;
	pid_t pid;

	need_filters();
	pid = fork();
	if (!pid) {
		void *bad = NULL;
		pthread_t t;
		int first;

		alarm(WAIT_S);
		fds[0] = socket(AF_UNIX, SOCK_STREAM, 0);
		/* the queues of a tap, where one can be had */
		if (unshare(CLONE_NEWNET) == 0 &&
		    (first = open("/dev/net/tun", O_RDWR | O_CLOEXEC)) >= 0 &&
		    ioctl(first, TUNSETIFF, &ifr) == 0) {
			fds[1] = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
			if (ioctl(fds[1], TUNSETIFF, &ifr) < 0)
				_exit(64);
		}
		if (lockdown_calls() < 0 || pthread_create(&t, NULL, io_acts, fds) ||
		    pthread_join(t, &bad))
			_exit(65);
		/* the main thread still may */
		if (accept4(fds[0], NULL, NULL, 0) >= 0 || errno != EINVAL)
			bad = (void *)((uintptr_t)bad | 32);
		_exit((int)(uintptr_t)bad);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_saved_guest_goes_on_where_it_was),
		cmocka_unit_test(a_saved_state_that_does_not_fit_is_refused),
		cmocka_unit_test(a_save_that_cannot_be_written_leaves_the_guest_whole),
		cmocka_unit_test(a_disk_of_a_running_guest_grows),
		cmocka_unit_test(a_reboot_runs_on_or_stops_as_configured),
		cmocka_unit_test(the_io_thread_may_do_less_than_the_process),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
