/* virtio_bench.c - what a request costs in the device model alone: virtio-blk from kick to used ring,
 * virtio-net frames to and from a real tap.
 *
 * No vCPU runs: the driver is the unit tests', in this process, polling the used ring with interrupts
 * off, so that a profile shows transport, rings, device and block layer and nothing else. The disk is
 * a memfd. The tap lies in a network namespace of its own (needs root and /dev/net/tun).
 * One JSON object a line (make bench).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/overflow.h"
#include "common/units.h"
#include "devices/virtio_devices.h"
#include "storage/blockdev.h"
#include "tests/bench/only.h"
/* its objects belong to the unit tests' programs; here it is a part of the bench */
#include "tests/unit/devices/virtio_driver.c"

#define RUNS	   20000u
#define QUEUE	   256u
#define DISK_BYTES (64 * MIB)
#define NO_EVENT   (~(1ull << 29)) /* no event index: the flag below counts */
enum { T_IN, T_OUT, T_FLUSH = 4 };

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void report(const char *figure, double *us, unsigned n, const char *note)
{
	qsort(us, n, sizeof(*us), by_value);
	printf("{\"figure\":\"%s\",\"unit\":\"us\",\"ours\":%.2f,\"runs\":%u,\"ours_p99\":%.2f,"
	       "\"note\":\"%s\"}\n",
	       figure, us[n / 2], n, us[n * 99 / 100], note);
}

static void report_mean(const char *figure, uint64_t ns, unsigned n, const char *note)
{
	printf("{\"figure\":\"%s\",\"unit\":\"us\",\"ours\":%.3f,\"runs\":%u,\"note\":\"%s\"}\n",
	       figure, (double)ns / 1e3 / n, n, note);
}

static void interrupts_off(struct vd *d, unsigned q)
{
	uint16_t *avail = vd_ptr(d->m, d->q[q].avail);

	__atomic_store_n(&avail[0], 1, __ATOMIC_RELAXED);
}

/* Wait until @n more are used; what came beyond them counts for the next wait. */
static void used_wait(struct vd *d, unsigned q, unsigned n)
{
	uint64_t end = clock_mono_ns() + 10 * NS_PER_S;

	for (unsigned spins = 0; (uint16_t)(vd_used_idx(d, q) - d->q[q].seen_used) < n; spins++) {
		if (spins % 64 == 63)
			sched_yield();
		if (spins % 65536 == 65535 && clock_mono_ns() > end) {
			fprintf(stderr, "virtio_bench: the device does not answer\n");
			exit(1);
		}
	}
	d->q[q].seen_used = (uint16_t)(d->q[q].seen_used + n);
}

/* ---- disk ---- */

static void blk_request(struct vd *d, gpa_t hdr, gpa_t data, gpa_t status, uint32_t type,
			uint64_t sector)
{
	uint64_t h[2] = { type, sector };
	struct vd_seg s[3] = { { hdr, 16, false },
			       { data, 4096, type == T_IN },
			       { status, 1, true } };

	memcpy(vd_ptr(d->m, hdr), h, sizeof(h));
	if (type == T_FLUSH)
		s[1] = s[2];
	vd_add(d, 0, s, type == T_FLUSH ? 2 : 3);
}

static void bench_blk(void)
{
	struct vd_machine m;
	struct vd d;
	struct blk_spec file = { .driver = "file",
				 .label = "disk vda",
				 .fd = memfd_create("disk", MFD_CLOEXEC),
				 .cache = BLK_CACHE_WRITEBACK };
	struct mc_disk disk = { .name = "vda", .queues = 1, .on_error = IO_ERROR_REPORT };
	struct err e = { 0 };
	gpa_t hdr, data, status;
	double *us = calloc(RUNS, sizeof(*us));
	static const struct {
		uint32_t type;
		const char *figure, *note;
	} kinds[] = {
		{ T_OUT, "virtio.blk.write_4k", "one at a time, kick to used ring, memfd" },
		{ T_IN, "virtio.blk.read_4k", "one at a time, kick to used ring, memfd" },
		{ T_FLUSH, "virtio.blk.flush", "one at a time, kick to used ring, memfd" },
	};

	if (!us || ftruncate(file.fd, DISK_BYTES) < 0 || !(disk.bd = blk_open(&file, &e)))
		exit(1);
	vd_machine_init(&m);
	if (virtio_blk_new(m.vm, m.bus, &disk, &e) || !vd_attach(&d, &m, 1 << 3, NO_EVENT))
		exit(1);
	vd_queue_setup(&d, 0, QUEUE);
	interrupts_off(&d, 0);
	vd_driver_ok(&d);
	hdr = vd_alloc(&m, 16 * 64, 16);
	data = vd_alloc(&m, 4096 * 64, 4096);
	status = vd_alloc(&m, 64, 1);
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		for (unsigned i = 0; i < RUNS && bench_wanted(kinds[k].figure); i++) {
			uint64_t start = clock_mono_ns();

			blk_request(&d, hdr, data, status, kinds[k].type, 8 * (i * 7919 % 16384));
			vd_kick(&d, 0);
			used_wait(&d, 0, 1);
			us[i] = (double)(clock_mono_ns() - start) / 1e3;
		}
		if (bench_wanted(kinds[k].figure))
			report(kinds[k].figure, us, RUNS, kinds[k].note);
	}
	/* a batch of 32 a kick: what a request costs when the way is shared */
	for (unsigned k = 0; k < 2; k++) {
		const char *figure = k ? "virtio.blk.read_4k_batch" : "virtio.blk.write_4k_batch";
		uint64_t start = clock_mono_ns();

		if (!bench_wanted(figure))
			continue;
		for (unsigned i = 0; i < RUNS; i += 32) {
			for (unsigned j = 0; j < 32; j++)
				blk_request(&d, hdr + 16 * j, data + 4096ull * j, status + j,
					    kinds[k].type, 8 * ((i + j) * 7919 % 16384));
			vd_kick(&d, 0);
			used_wait(&d, 0, 32);
		}
		report_mean(figure, clock_mono_ns() - start, RUNS,
			    "32 a kick, a request's share, memfd");
	}
	vd_machine_fini(&m);
	free(us);
}

/* ---- network ---- */

/* A tap in a namespace of its own, up, and a packet socket on it: what is sent there comes out of
 * the tap. */
static int tap_make(int *packet)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	struct sockaddr_ll ll = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	int tap = -1, buf = 4 << 20;

	*packet = -1;
	if (unshare(CLONE_NEWNET) < 0 || (tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC)) < 0 ||
	    ioctl(tap, TUNSETIFF, &ifr) < 0)
		return -1;
	*packet = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (*packet < 0 || ioctl(*packet, SIOCGIFINDEX, &ifr) < 0)
		return -1;
	ll.sll_ifindex = ifr.ifr_ifindex;
	ll.sll_protocol = 0; /* sends only */
	ifr.ifr_flags = IFF_UP | IFF_RUNNING | IFF_NOARP;
	if (ioctl(*packet, SIOCSIFFLAGS, &ifr) < 0 ||
	    bind(*packet, (struct sockaddr *)&ll, sizeof(ll)) < 0)
		return -1;
	setsockopt(*packet, SOL_SOCKET, SO_SNDBUF, &buf, sizeof(buf));
	return tap;
}

static void bench_tx(struct vd *d, unsigned len, const char *figure)
{
	gpa_t at = vd_alloc(d->m, len + 12, 16);
	struct vd_seg seg = { at, len + 12, false };
	uint8_t *frame = (uint8_t *)vd_ptr(d->m, at) + 12;
	unsigned total = 10 * RUNS;
	uint64_t start;

	if (!bench_wanted(figure))
		return;
	/* to nobody, of a type nobody listens to: the host's stack lets it go at once */
	memset(frame, 0x02, 12);
	frame[12] = 0x88;
	frame[13] = 0xb5;
	start = clock_mono_ns();
	for (unsigned i = 0; i < total; i += 64) {
		for (unsigned j = 0; j < 64; j++)
			vd_add(d, 1, &seg, 1);
		vd_kick(d, 1);
		used_wait(d, 1, 64);
	}
	report_mean(figure, clock_mono_ns() - start, total, "64 a kick, a frame's share, real tap");
}

static void bench_rx(struct vd *d, int packet, unsigned len, const char *figure)
{
	uint8_t frame[1514] = { 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0x88, 0xb5 };
	struct iovec v = { frame, len };
	struct mmsghdr msg[64];
	unsigned total = 5 * RUNS;
	uint64_t start;
	gpa_t buf = vd_alloc(d->m, 2048 * 64, 4096);

	if (!bench_wanted(figure))
		return;
	for (unsigned j = 0; j < 64; j++)
		msg[j] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &v, .msg_iovlen = 1 } };
	start = clock_mono_ns();
	for (unsigned i = 0; i < total; i += 64) {
		unsigned sent = 0;

		for (unsigned j = 0; j < 64; j++) {
			struct vd_seg seg = { buf + 2048ull * j, 2048, true };

			vd_add(d, 0, &seg, 1);
		}
		vd_kick(d, 0);
		while (sent < 64) {
			int n = sendmmsg(packet, msg + sent, 64 - sent, 0);

			if (n < 0 && errno != ENOBUFS) {
				perror("virtio_bench: sending into the tap");
				exit(1);
			}
			sent += n > 0 ? (unsigned)n : 0;
		}
		used_wait(d, 0, 64);
	}
	report_mean(figure, clock_mono_ns() - start, total,
		    "64 at a time, a frame's share, real tap, the sender's work included");
}

static void bench_net(void)
{
	struct mc_nic nic = {
		.name = "net0", .mac = { 0x52, 0x54, 0, 1, 2, 3 }, .queues = 1, .vhost_fds = { -1 }
	};
	struct vd_machine m;
	struct vd d;
	struct err e = { 0 };
	int packet;

	nic.tap_fds[0] = tap_make(&packet);
	if (nic.tap_fds[0] < 0) {
		fprintf(stderr, "virtio_bench: no tap here (needs root and /dev/net/tun): %s\n",
			strerror(errno));
		return;
	}
	vd_machine_init(&m);
	if (virtio_net_new(m.vm, m.bus, &nic, &e) || !vd_attach(&d, &m, 1 << 3, NO_EVENT))
		exit(1);
	for (unsigned q = 0; q < 2; q++) {
		vd_queue_setup(&d, q, QUEUE);
		interrupts_off(&d, q);
	}
	vd_driver_ok(&d);
	bench_tx(&d, 60, "virtio.net.tx_60");
	bench_tx(&d, 1514, "virtio.net.tx_1514");
	bench_rx(&d, packet, 60, "virtio.net.rx_60");
	bench_rx(&d, packet, 1514, "virtio.net.rx_1514");
	vd_machine_fini(&m);
	close(packet);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (bench_wanted("virtio.blk."))
		bench_blk();
	if (bench_wanted("virtio.net."))
		bench_net();
	return 0;
}
