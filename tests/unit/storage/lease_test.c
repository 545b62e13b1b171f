/* lease_test.c - one writer a disk among processes that share a directory: refused while its owner
 * lives, taken over from one that died or was cut off, which then finds out. */
#include "tests/unit/storage/disk_test.h"

#include <poll.h>
#include <signal.h>

#include "common/loop.h"
#include "storage/lease.h"

#define STALE_MS 1000

static struct lease_owner owner_of(const char *name, uint8_t id)
{
	struct lease_owner o = { .id = { id, 1, 2, 3 } };

	snprintf(o.name, sizeof(o.name), "%s", name);
	return o;
}

static int lease_file(void)
{
	return disk_fd("disk.lease", O_RDWR | O_CREAT);
}

static void fresh(void)
{
	(void)unlink(disk_path("disk.lease"));
}

/* A process of its own that takes the lease, says 'y' or 'n', and beats until its input ends (then
 * it drops the lease, 'd') or a beat says that it was taken over ('l'). */
struct holder {
	pid_t pid;
	int to, from;
};

static void holder_main(const char *name, uint8_t id, int in, int out)
{
	struct lease_owner o = owner_of(name, id);
	struct pollfd p = { .fd = in, .events = POLLIN };
	struct err e = { 0 };
	struct lease l;
	int r = lease_take(&l, lease_file(), &o, STALE_MS, NULL, &e);

	if (write(out, r ? "n" : "y", 1) != 1 || r)
		_exit(1);
	for (;;) {
		if (poll(&p, 1, STALE_MS / 10) > 0) {
			_exit(write(out, lease_drop(&l) ? "x" : "d", 1) != 1);
		} else if (lease_beat(&l, NULL, &e)) {
			_exit(write(out, "l", 1) != 1 || lease_valid(&l));
		}
	}
}

static struct holder holder_start(const char *name, uint8_t id)
{
	struct holder h;
	int in[2], out[2];

	assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC), 0);
	h.pid = fork();
	assert_true(h.pid >= 0);
	if (!h.pid) {
		close(in[1]);
		close(out[0]);
		holder_main(name, id, in[0], out[1]);
	}
	close(in[0]);
	close(out[1]);
	h.to = in[1];
	h.from = out[0];
	return h;
}

/* holder_says() - its next word; 0 at its end. */
static char holder_says(struct holder *h)
{
	struct pollfd p = { .fd = h->from, .events = POLLIN };
	char c = 0;

	assert_int_equal(poll(&p, 1, 30000), 1);
	return read(h->from, &c, 1) == 1 ? c : 0;
}

static void holder_end(struct holder *h)
{
	close(h->to);
	close(h->from);
	assert_int_equal(waitpid(h->pid, NULL, 0), h->pid);
}

static void a_disk_whose_owner_lives_is_refused_with_its_name(void **state)
{
	struct lease_owner o = owner_of("here", 9);
	struct holder h;
	struct err e = { 0 };
	struct lease l;
	int fd;

	(void)state;
	fresh();
	h = holder_start("host-a/web", 1);
	assert_int_equal(holder_says(&h), 'y');
	fd = lease_file();
	assert_int_equal(lease_take(&l, fd, &o, STALE_MS, NULL, &e), -EBUSY);
	assert_non_null(strstr(e.detail, "host-a/web"));
	/* it gives it back: the next one need not wait until it is stale */
	assert_int_equal(write(h.to, "q", 1), 1);
	assert_int_equal(holder_says(&h), 'd');
	holder_end(&h);
	uint64_t t0 = clock_mono_ns();

	assert_int_equal(lease_take(&l, fd, &o, 20000, NULL, &e), 0);
	assert_true(clock_mono_ns() - t0 < 15000 * NS_PER_MS);
	assert_true(lease_valid(&l));
	assert_int_equal(lease_drop(&l), 0);
	assert_false(lease_valid(&l));
	close(fd);
}

static void a_dead_owners_lease_is_taken_over(void **state)
{
	struct lease_owner o = owner_of("here", 9);
	struct holder h;
	struct err e = { 0 };
	struct lease l;
	int fd;

	(void)state;
	fresh();
	h = holder_start("host-a/web", 1);
	assert_int_equal(holder_says(&h), 'y');
	assert_int_equal(kill(h.pid, SIGKILL), 0);
	holder_end(&h);
	fd = lease_file();
	uint64_t t0 = clock_mono_ns();

	assert_int_equal(lease_take(&l, fd, &o, STALE_MS, NULL, &e), 0);
	/* not before it stood still for the whole stale time */
	assert_true(clock_mono_ns() - t0 >= STALE_MS * NS_PER_MS);
	assert_true(l.generation >= 2);
	assert_int_equal(lease_drop(&l), 0);
	close(fd);
}

static void an_owner_that_was_cut_off_finds_out_and_writes_nothing(void **state)
{
	struct lease_owner o = owner_of("here", 9);
	struct holder h;
	struct err e = { 0 };
	struct lease l;
	int fd;

	(void)state;
	fresh();
	h = holder_start("host-a/web", 1);
	assert_int_equal(holder_says(&h), 'y');
	assert_int_equal(kill(h.pid, SIGSTOP), 0);
	assert_int_equal(waitpid(h.pid, NULL, WUNTRACED), h.pid);
	fd = lease_file();
	assert_int_equal(lease_take(&l, fd, &o, STALE_MS, NULL, &e), 0);
	assert_int_equal(kill(h.pid, SIGCONT), 0);
	assert_int_equal(holder_says(&h), 'l');
	holder_end(&h);
	/* ours is untouched by what it tried; it may be late itself on a busy machine */
	uint8_t raw[512];

	assert_int_equal(pread(fd, raw, sizeof(raw), 0), sizeof(raw));
	assert_int_equal(raw[40], 9);
	(void)lease_drop(&l);
	close(fd);
}

static void of_many_that_want_it_at_once_one_gets_it(void **state)
{
	struct holder h[6];
	unsigned got = 0;

	(void)state;
	fresh();
	for (unsigned i = 0; i < ARRAY_SIZE(h); i++)
		h[i] = holder_start("one-of-many", (uint8_t)(i + 1));
	for (unsigned i = 0; i < ARRAY_SIZE(h); i++)
		got += holder_says(&h[i]) == 'y';
	assert_int_equal(got, 1);
	for (unsigned i = 0; i < ARRAY_SIZE(h); i++)
		holder_end(&h[i]);
}

static void an_owner_that_is_late_gets_it_again_where_nobody_took_it(void **state)
{
	struct lease_owner o = owner_of("here", 9);
	struct err e = { 0 };
	struct lease l;
	int fd;

	(void)state;
	fresh();
	fd = lease_file();
	assert_int_equal(lease_take(&l, fd, &o, 400, NULL, &e), 0);
	uint64_t was = l.generation;

	assert_int_equal(poll(NULL, 0, 250), 0);
	assert_false(lease_valid(&l));
	assert_int_equal(lease_beat(&l, NULL, &e), 0);
	assert_true(l.generation > was && lease_valid(&l));
	assert_int_equal(lease_drop(&l), 0);
	close(fd);
}

static void another_hosts_newer_top_layer_is_named_and_refused(void **state)
{
	struct lease_owner a = owner_of("a", 1), b = owner_of("b", 2);
	struct err e = { 0 };
	struct lease *l;

	(void)state;
	fresh();
	strcpy(a.host, "host-a");
	strcpy(a.file, "web.qcow2");
	strcpy(b.host, "host-b");
	strcpy(b.file, "web.qcow2");
	l = lease_hold(lease_file(), &a, 400, NULL, &e);
	assert_non_null(l);
	assert_int_equal(lease_set_file(l, "web.1.qcow2", &e), 0);
	lease_let_go(l);
	assert_null(lease_hold(-1, &b, 400, NULL, &e));
	int fd = lease_file();

	e = (struct err){ 0 };
	assert_null(lease_hold(fd, &b, 400, NULL, &e));
	assert_string_equal(e.code, "disk-goes-on-elsewhere");
	assert_non_null(strstr(e.detail, "web.1.qcow2"));
	/* its own host has newer records than the lease, after a snapshot of a stopped guest */
	strcpy(a.file, "web.2.qcow2");
	l = lease_hold(fd, &a, 400, NULL, &e);
	assert_non_null(l);
	lease_let_go(l);
}

/* the gate below every disk: no write without the lease, and reads go on */
static void a_disk_without_its_lease_is_not_written(void **state)
{
	struct lease_owner o = owner_of("here", 9);
	struct err e = { 0 };
	char page[4096] = { 1 };
	struct lease *l;

	(void)state;
	fresh();
	l = lease_hold(lease_file(), &o, 5000, NULL, &e);
	assert_non_null(l);
	for (int raw = 0; raw < 2; raw++) {
		int fd = disk_fd("leased.disk", O_RDWR | O_CREAT | O_TRUNC);
		struct qcow2_create c = { .size_bytes = MIB };
		struct blk_spec spec = {
			.driver = raw ? "file" : "qcow2", .fd = fd, .lease = l, .discard = true
		};

		if (raw)
			assert_int_equal(ftruncate(fd, MIB), 0);
		else
			assert_int_equal(qcow2_create(fd, &c, &e), 0);
		struct blockdev *bd = blk_open(&spec, &e);

		assert_non_null(bd);
		assert_int_equal(blk_pwrite(bd, page, sizeof(page), 0), 0);
		assert_int_equal(blk_flush(bd), 0);
		atomic_store(&l->lost, true);
		assert_int_equal(blk_pwrite(bd, page, sizeof(page), 256 * KIB), -ESTALE);
		assert_int_equal(blk_pwrite(bd, page, sizeof(page), 0), -ESTALE);
		if (raw)
			assert_int_equal(blk_zero(bd, 0, 4096, true), -ESTALE);
		assert_int_equal(blk_resize(bd, 2 * MIB, &e), -ESTALE);
		assert_int_equal(blk_pread(bd, page, sizeof(page), 0), 0);
		(void)blk_close(bd);
		atomic_store(&l->lost, false);
	}
	lease_let_go(l);
}

static void a_record_that_is_garbage_is_watched_before_it_is_replaced(void **state)
{
	struct lease_owner o = owner_of("here", 9);
	uint8_t junk[512];
	struct err e = { 0 };
	struct lease l;
	int fd;

	(void)state;
	for (unsigned len = 1; len <= sizeof(junk); len += 511) {
		_Atomic bool stop = true;

		fresh();
		fd = lease_file();
		rng_fill(junk, sizeof(junk));
		assert_int_equal(write(fd, junk, len), len);
		assert_int_equal(lease_take(&l, fd, &o, 200, &stop, &e), -ECANCELED);
		e = (struct err){ 0 };
		assert_int_equal(lease_take(&l, fd, &o, 200, NULL, &e), 0);
		(void)lease_drop(&l);
		close(fd);
	}
	assert_int_equal(lease_take(&l, -1, &o, 200, NULL, &e), -EBADF);
	assert_int_equal(lease_take(&l, -1, &o, 10, NULL, &e), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_disk_whose_owner_lives_is_refused_with_its_name),
		cmocka_unit_test(a_dead_owners_lease_is_taken_over),
		cmocka_unit_test(an_owner_that_was_cut_off_finds_out_and_writes_nothing),
		cmocka_unit_test(of_many_that_want_it_at_once_one_gets_it),
		cmocka_unit_test(an_owner_that_is_late_gets_it_again_where_nobody_took_it),
		cmocka_unit_test(another_hosts_newer_top_layer_is_named_and_refused),
		cmocka_unit_test(a_disk_without_its_lease_is_not_written),
		cmocka_unit_test(a_record_that_is_garbage_is_watched_before_it_is_replaced),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
