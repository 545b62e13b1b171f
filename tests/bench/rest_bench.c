/* rest_bench.c - REST reads over the unix socket with 1,000 defined guests: an api process whose
 * core is this program; one keep-alive client. Figures: rest.get.reads, rest.get.latency,
 * rest.list.latency.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/api.h"
#include "common/log.h"
#include "common/units.h"
#include "tests/bench/only.h"
#include "vmd/proto.h"

#define GUESTS 1000
#define GETS   50000u
#define LISTS  300

static char buf[8 << 20];

static int ask(int fd, const char *req)
{
	size_t len = 0, want = SIZE_MAX;

	if (send(fd, req, strlen(req), 0) < 0)
		return -1;
	while (len < want) {
		ssize_t n = recv(fd, buf + len, sizeof(buf) - 1 - len, 0);
		char *body, *cl;

		if (n <= 0)
			return -1;
		len += (size_t)n;
		buf[len] = '\0';
		if (want == SIZE_MAX && (body = strstr(buf, "\r\n\r\n")) &&
		    (cl = strstr(buf, "Content-Length: ")))
			want = (size_t)(body + 4 - buf) + strtoul(cl + 16, NULL, 10);
	}
	return atoi(buf + 9);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void bench(int fd, const char *figure, const char *req, unsigned runs, double *per_s)
{
	uint64_t *t = calloc(runs, sizeof(*t)), start = clock_mono_ns();

	for (unsigned i = 0; i < runs; i++) {
		uint64_t t0 = clock_mono_ns();

		if (ask(fd, req) != 200)
			exit(1);
		t[i] = clock_mono_ns() - t0;
	}
	*per_s = runs / ((double)(clock_mono_ns() - start) / 1e9);
	qsort(t, runs, sizeof(*t), by_value);
	printf("{\"figure\":\"%s\",\"unit\":\"us\",\"ours\":%.1f,\"ours_p99\":%.1f,\"runs\":%u,"
	       "\"note\":\"1,000 guests, unix socket, keep-alive\"}\n",
	       figure, (double)t[runs / 2] / 1e3, (double)t[runs * 99ull / 100] / 1e3, runs);
	free(t);
}

int main(void)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct msg_s_setup *s = calloc(1, sizeof(*s));
	struct msg_a_put *p = calloc(1, sizeof(*p));
	struct wire_buf b = { 0 };
	int priv[2], core[2], fd, lfd = socket(AF_UNIX, SOCK_STREAM, 0);
	double per_s, waste;
	pid_t pid;

	snprintf(un.sun_path, sizeof(un.sun_path), "/tmp/vmd-rest-bench.%d", getpid());
	if (!bench_wanted("rest."))
		return 0;
	if (!s || !p || bind(lfd, (struct sockaddr *)&un, sizeof(un)) < 0 || listen(lfd, 64) < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, priv) < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, core) < 0)
		return 1;
	pid = fork();
	if (!pid) {
		close(priv[0]);
		close(core[0]);
		log_open("api", NULL, 2, LOG_ERR_);
		_exit(api_main(priv[1]));
	}
	close(priv[1]);
	s->peer = core[1];
	s->listen = lfd;
	s->listen_tls = s->db_dir = -1;
	s->user_mode = 1;
	if (msg_s_setup_encode(s, 0, &b) < 0 || wire_send(priv[0], &b) < 0)
		return 1;
	close(core[1]);
	for (unsigned i = 0; i < GUESTS; i++) {
		char json[800];

		snprintf(p->kind, sizeof(p->kind), "guest");
		snprintf(p->id, sizeof(p->id), "%08x-1111-4111-8111-111111111111", i);
		snprintf(p->name, sizeof(p->name), "web-%04u", i);
		p->revision = 1;
		snprintf(json, sizeof(json),
			 "{\"name\":\"web-%04u\",\"uuid\":\"%s\",\"state\":\"stopped\",\"cpus\":1,"
			 "\"memory\":268435456,\"machine\":\"pc\",\"accel\":\"auto\",\"kernel\":"
			 "\"linux\",\"cmdline\":\"console=ttyS0\","
			 "\"disks\":[{\"name\":\"disk0\",\"image\":\"debian\",\"format\":\"qcow2\"}"
			 "],\"nics\":[{\"name\":\"net0\",\"network\":\"lan\",\"mac\":\"52:54:00:00:"
			 "00:01\"}],\"labels\":{\"tier\":\"front\"},\"revision\":1}",
			 i, p->id);
		p->json = (struct proto_bytes){ (const uint8_t *)json, strlen(json) };
		if (msg_a_put_encode(p, 0, &b) < 0 || wire_send(core[0], &b) < 0)
			return 1;
	}
	if (msg_a_synced_encode(&(struct msg_a_synced){ 0 }, 0, &b) < 0 ||
	    wire_send(core[0], &b) < 0)
		return 1;
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&un, sizeof(un)) < 0)
		return 1;
	while (ask(fd, "GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") == 503)
		;
	if (bench_wanted("rest.get.")) {
		bench(fd, "rest.get.latency",
		      "GET /v1/guests/web-0500 HTTP/1.1\r\nHost: localhost\r\n\r\n", GETS, &per_s);
		printf("{\"figure\":\"rest.get.reads\",\"unit\":\"1/"
		       "s\",\"ours\":%.0f,\"runs\":%u,\"note\":\"one client, one request in "
		       "flight\"}\n",
		       per_s, GETS);
	}
	if (bench_wanted("rest.list.latency"))
		bench(fd, "rest.list.latency", "GET /v1/guests HTTP/1.1\r\nHost: localhost\r\n\r\n",
		      LISTS, &waste);
	close(fd);
	close(core[0]);
	close(priv[0]);
	waitpid(pid, NULL, 0);
	unlink(un.sun_path);
	free(s);
	free(p);
	return 0;
}
