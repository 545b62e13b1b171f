/* work.c - the work whose slowdown soft_bench measures: one static program, the same file natively and as the first
 * process of a guest.
 *
 * It reads lines "NAME COUNT" from standard input, does COUNT rounds of NAME and answers "DONE NAME COUNT CHECK CPU_NS"
 * (CPU_NS: its own and its children's). In between it waits for the next line, so that the bench can read the VMM's CPU clock
 * while the guest idles. CHECK depends on every result: a CPU that computes wrongly shows.
 * The first line it says is "READY". "end" ends it, as process 1 by switching the machine off.
 *
 * coremark is a CoreMark-like mix of our own (linked list, integer matrix, state machine, CRC); its rounds are not
 * CoreMark's iterations.
 */
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const char *self;

/* ---- coremark ---- */
struct node {
	struct node *next;
	int16_t val, idx;
};
#define NODES 400
#define DIM   24

static uint16_t crc16(uint16_t crc, uint16_t v)
{
	for (int i = 0; i < 16; i++) {
		unsigned x = (crc ^ v) & 1;

		v >>= 1;
		crc >>= 1;
		if (x)
			crc ^= 0xa001;
	}
	return crc;
}

static struct node *list_merge(struct node *a, struct node *b, int by_idx)
{
	struct node head, *t = &head;

	while (a && b) {
		int less = by_idx ? a->idx <= b->idx : a->val <= b->val;

		if (less) {
			t->next = a;
			a = a->next;
		} else {
			t->next = b;
			b = b->next;
		}
		t = t->next;
	}
	t->next = a ? a : b;
	return head.next;
}

static struct node *list_sort(struct node *l, int by_idx)
{
	struct node *slow = l, *fast;

	if (!l || !l->next)
		return l;
	fast = l->next;
	while (fast && fast->next) {
		slow = slow->next;
		fast = fast->next->next;
	}
	fast = slow->next;
	slow->next = NULL;
	return list_merge(list_sort(l, by_idx), list_sort(fast, by_idx), by_idx);
}

static unsigned state_scan(const char *s, unsigned counts[8])
{
	enum { START, INT, FLOAT, EXP, SCI, BAD } st = START;
	unsigned n = 0;

	for (; *s; s++, n++) {
		char ch = *s;

		if (ch == ',') {
			counts[st]++;
			st = START;
			continue;
		}
		switch (st) {
		case START:
			st = ch >= '0' && ch <= '9'   ? INT
			     : ch == '+' || ch == '-' ? INT
			     : ch == '.'	      ? FLOAT
						      : BAD;
			break;
		case INT:
			st = ch == '.' ? FLOAT : ch >= '0' && ch <= '9' ? INT : BAD;
			break;
		case FLOAT:
			st = ch == 'e' || ch == 'E' ? EXP : ch >= '0' && ch <= '9' ? FLOAT : BAD;
			break;
		case EXP:
			st = ch == '+' || ch == '-' ? SCI : BAD;
			break;
		case SCI:
			st = ch >= '0' && ch <= '9' ? SCI : BAD;
			break;
		default:
			break;
		}
	}
	counts[6]++;
	return n;
}

static uint64_t work_coremark(uint64_t count)
{
	static struct node nodes[NODES];
	static int16_t a[DIM][DIM], b[DIM][DIM];
	static int32_t m[DIM][DIM];
	static const char text[] =
	    "5012,1234,-874,+122,35.54400,.1234500,-110.700,+0.64400,5.500e+3,-.123e-2,"
	    "-87e+832,+0.6e-12,T0.3e-1F,-T.T++Tq,1T3.4e4z,34.0e-T^";
	uint16_t crc = 0;

	while (count--) {
		struct node *l = nodes;
		unsigned counts[8] = { 0 };

		for (int i = 0; i < NODES; i++) {
			nodes[i].next = i + 1 < NODES ? &nodes[i + 1] : NULL;
			nodes[i].val = (int16_t)((i * 7919 + crc) & 0x3fff);
			nodes[i].idx = (int16_t)i;
		}
		for (int find = 0; find < 20; find++) {
			struct node *p = l;

			while (p && p->idx != find * 19)
				p = p->next;
			crc = crc16(crc, p ? (uint16_t)p->val : 0);
		}
		l = list_sort(l, 0);
		crc = crc16(crc, (uint16_t)l->val);
		l = list_sort(l, 1);
		struct node *rev = NULL;

		while (l) {
			struct node *next = l->next;

			l->next = rev;
			rev = l;
			l = next;
		}
		crc = crc16(crc, rev ? (uint16_t)rev->idx : 0);
		for (int i = 0; i < DIM; i++)
			for (int j = 0; j < DIM; j++) {
				a[i][j] = (int16_t)(i * 3 + j + crc);
				b[i][j] = (int16_t)(i - j * 5);
			}
		for (int i = 0; i < DIM; i++)
			for (int j = 0; j < DIM; j++) {
				int32_t sum = 0;

				for (int k = 0; k < DIM; k++)
					sum += (int32_t)a[i][k] * b[k][j];
				m[i][j] = sum;
			}
		for (int i = 0; i < DIM; i++)
			crc = crc16(crc, (uint16_t)(m[i][i] >> 3 & 0x7f));
		for (int i = 0; i < 8; i++)
			crc = crc16(crc, (uint16_t)state_scan(text, counts));
		for (int i = 0; i < 8; i++)
			crc = crc16(crc, (uint16_t)counts[i]);
	}
	return crc;
}

/* ---- sha256 (FIPS 180-4), plain C ---- */
static const uint32_t sha_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
	0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
	0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
	0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
	0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	0xc67178f2
};

static uint32_t ror(uint32_t v, unsigned n)
{
	return v >> n | v << (32 - n);
}

static void sha_block(uint32_t h[8], const uint8_t *p)
{
	uint32_t w[64], s[8];

	for (int i = 0; i < 16; i++) {
		memcpy(&w[i], p + i * 4, 4);
		w[i] = __builtin_bswap32(w[i]);
	}
	for (int i = 16; i < 64; i++) {
		uint32_t x = w[i - 15], y = w[i - 2];

		w[i] = w[i - 16] + w[i - 7] + (ror(x, 7) ^ ror(x, 18) ^ x >> 3) +
		       (ror(y, 17) ^ ror(y, 19) ^ y >> 10);
	}
	memcpy(s, h, sizeof(s));
	for (int i = 0; i < 64; i++) {
		uint32_t e = s[4], a = s[0];
		uint32_t t1 = s[7] + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) +
			      ((e & s[5]) ^ (~e & s[6])) + sha_k[i] + w[i];
		uint32_t t2 = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) +
			      ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));

		s[7] = s[6];
		s[6] = s[5];
		s[5] = e;
		s[4] = s[3] + t1;
		s[3] = s[2];
		s[2] = s[1];
		s[1] = a;
		s[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		h[i] += s[i];
}

static uint64_t work_sha256(uint64_t count)
{
	static uint8_t data[4096];
	uint32_t h[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
			  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 31);
	while (count--)
		for (unsigned i = 0; i < sizeof(data); i += 64)
			sha_block(h, data + i);
	return (uint64_t)h[0] << 32 | h[7];
}

/* ---- memory, sieve, floating point ---- */
static uint64_t work_memcpy(uint64_t count)
{
	static uint8_t a[1 << 20], b[1 << 20];
	uint64_t sum = 0;

	for (unsigned i = 0; i < sizeof(a); i += 4096)
		a[i] = b[i] = (uint8_t)i;
	while (count--) {
		a[count % sizeof(a)] = (uint8_t)count;
		memcpy(b, a, sizeof(a));
		__asm__ volatile("" : : "r"(b) : "memory");
		sum += b[count % sizeof(b)];
	}
	return sum;
}

static uint64_t work_sieve(uint64_t count)
{
	enum { N = 2 << 20 };
	static uint8_t composite[N];
	uint64_t primes = 0;

	while (count--) {
		memset(composite, 0, sizeof(composite));
		for (unsigned i = 2; i * i < N; i++)
			if (!composite[i])
				for (unsigned j = i * i; j < N; j += i)
					composite[j] = 1;
		for (unsigned i = 2; i < N; i++)
			primes += !composite[i];
	}
	return primes;
}

static uint64_t work_fp(uint64_t count)
{
	double x[5] = { 0, 4.84, 8.34, 12.89, 15.38 }, y[5] = { 0, -1.16, 4.12, -15.11, -25.9 };
	double z[5] = { 0, -0.1, -0.4, -0.22, 0.18 }, vx[5] = { 0, 0.6, -1.01, 1.08, 0.97 };
	double vy[5] = { 0, 2.8, 1.82, 0.86, 0.59 }, vz[5] = { 0, -0.02, 0.008, -0.01, -0.03 };
	double mass[5] = { 39.47, 0.037, 0.011, 0.0017, 0.002 };
	double energy = 0;
	uint64_t bits;

	while (count--)
		for (int step = 0; step < 100; step++) {
			for (int i = 0; i < 5; i++)
				for (int j = i + 1; j < 5; j++) {
					double dx = x[i] - x[j], dy = y[i] - y[j], dz = z[i] - z[j];
					double d2 = dx * dx + dy * dy + dz * dz;
					double mag = 0.001 / (d2 * sqrt(d2));

					vx[i] -= dx * mass[j] * mag;
					vy[i] -= dy * mass[j] * mag;
					vz[i] -= dz * mass[j] * mag;
					vx[j] += dx * mass[i] * mag;
					vy[j] += dy * mass[i] * mag;
					vz[j] += dz * mass[i] * mag;
				}
			for (int i = 0; i < 5; i++) {
				x[i] += 0.001 * vx[i];
				y[i] += 0.001 * vy[i];
				z[i] += 0.001 * vz[i];
			}
			energy += vx[1] * vx[1] + vy[1] * vy[1];
		}
	memcpy(&bits, &energy, 8);
	return bits;
}

/* ---- the kernel's side ---- */
static uint64_t work_getppid(uint64_t count)
{
	uint64_t ok = 0, parent = (uint64_t)getppid(), n = count;

	while (count--)
		ok += (uint64_t)syscall(SYS_getppid) == parent;
	return ok == n;
}

static uint64_t work_forkexec(uint64_t count)
{
	uint64_t sum = 0;

	while (count--) {
		pid_t pid = fork();
		int st = 0;

		if (pid == 0) {
			execl(self, self, "seven", (char *)NULL);
			_exit(99);
		}
		waitpid(pid, &st, 0);
		sum += WIFEXITED(st) && WEXITSTATUS(st) == 7;
	}
	return sum;
}

static uint64_t work_pingpong(uint64_t count)
{
	int a[2], b[2];
	uint64_t n = count, ok = 0;
	uint8_t ch = 0;
	pid_t pid;

	if (pipe(a) || pipe(b))
		return 0;
	pid = fork();
	if (pid == 0) {
		while (n-- && read(a[0], &ch, 1) == 1) {
			ch++;
			if (write(b[1], &ch, 1) != 1)
				break;
		}
		_exit(0);
	}
	while (count--) {
		uint8_t want = (uint8_t)(count + 1);

		ch = (uint8_t)count;
		if (write(a[1], &ch, 1) != 1 || read(b[0], &ch, 1) != 1)
			break;
		ok += ch == want;
	}
	close(a[0]);
	close(a[1]);
	close(b[0]);
	close(b[1]);
	waitpid(pid, NULL, 0);
	return ok == n;
}

static const struct {
	const char *name;
	uint64_t (*fn)(uint64_t count);
} works[] = {
	{ "coremark", work_coremark },
	{ "sha256", work_sha256 },
	{ "memcpy", work_memcpy },
	{ "sieve", work_sieve },
	{ "fp", work_fp },
	{ "getppid", work_getppid },
	{ "forkexec", work_forkexec },
	{ "pingpong", work_pingpong },
};

static uint64_t cpu_ns(void)
{
	uint64_t ns = 0;
	struct rusage u;

	for (int who = 0; who < 2; who++) {
		getrusage(who ? RUSAGE_CHILDREN : RUSAGE_SELF, &u);
		ns += (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000 +
		      (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000;
	}
	return ns;
}

int main(int argc, char **argv)
{
	char line[128], name[64];
	unsigned long long count;
	struct termios t;
	cpu_set_t one;

	if (argc > 1 && strcmp(argv[1], "seven") == 0)
		return 7;
	self = argv[0];
	if (tcgetattr(0, &t) == 0) {
		t.c_lflag &= ~(tcflag_t)ECHO;
		t.c_oflag &= ~(tcflag_t)OPOST;
		tcsetattr(0, TCSANOW, &t);
	}
	/* two processes that take turns: one processor, as in a guest with one vCPU */
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	if (getpid() != 1)
		sched_setaffinity(0, sizeof(one), &one);
	printf("READY\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (strncmp(line, "end", 3) == 0)
			break;
		if (sscanf(line, "%63s %llu", name, &count) != 2)
			continue;
		for (unsigned i = 0; i < sizeof(works) / sizeof(works[0]); i++) {
			if (strcmp(works[i].name, name) != 0)
				continue;
			uint64_t t0 = cpu_ns(), check = works[i].fn(count);

			printf("DONE %s %llu %llx %llu\n", name, count, (unsigned long long)check,
			       (unsigned long long)(cpu_ns() - t0));
			fflush(stdout);
		}
	}
	if (getpid() == 1)
		reboot(RB_POWER_OFF);
	return 0;
}
