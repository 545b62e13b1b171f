/* qcow2_stamp_test.c - a parent changed under its overlay is noticed, named and refused. */
#include "tests/unit/storage/disk_test.h"

#include <signal.h>
#include <time.h>

#include "storage/job.h"
#include "storage/live.h"
#include "storage/qcow2_tools.h"

#define SIZE (8 * MIB)

static struct blk_spec spec(const char *name, const char *driver, bool ro)
{
	return (struct blk_spec){ .driver = driver,
				  .label = name,
				  .fd = disk_fd(name, ro ? O_RDONLY : O_RDWR),
				  .read_only = ro,
				  .discard = true,
				  .cache = BLK_CACHE_WRITEBACK };
}

/* try_open() - top over mid over base; 0 or -errno, closed again. */
static int try_open(bool ro, bool write, struct err *e)
{
	struct blk_spec base = spec("base", "file", true), mid = spec("mid", "qcow2", true),
			top = spec("top", "qcow2", ro);
	struct blockdev *bd;

	*e = (struct err){ 0 };
	mid.backing = &base;
	top.backing = &mid;
	bd = blk_open(&top, e);
	if (!bd) {
		close(base.fd);
		close(mid.fd);
		close(top.fd);
		return -e->num;
	}
	if (write)
		assert_int_equal(blk_zero(bd, 0, 512, false), 0);
	return blk_close(bd);
}

static void make(void)
{
	struct qcow2_create c = { .size_bytes = SIZE,
				  .backing_format = "raw",
				  .backing_name = "base" };
	struct blk_spec base, mid;
	struct err e = { 0 };
	struct blockdev *bd;
	static uint8_t buf[512];
	int fd = disk_fd("base", O_RDWR | O_CREAT | O_TRUNC);

	assert_int_equal(ftruncate(fd, SIZE), 0);
	close(fd);
	disk_create("mid", &c);
	base = spec("base", "file", true);
	mid = spec("mid", "qcow2", false);
	mid.backing = &base;
	bd = blk_open(&mid, &e);
	assert_non_null(bd);
	assert_int_equal(blk_pwrite(bd, buf, 512, MIB), 0);
	assert_int_equal(blk_close(bd), 0);
	c.backing_name = "mid";
	c.backing_format = "qcow2";
	disk_create("top", &c);
	assert_int_equal(try_open(false, true, &e), 0);
	assert_int_equal(try_open(false, true, &e), 0);
	if (have_qemu())
		assert_int_equal(qemu_check("top"), 0);
}

/* scribble() - a byte of the file changes, by somebody who does not know better. */
static void scribble(const char *name)
{
	int fd = disk_fd(name, O_RDWR);
	struct stat st;
	struct timespec t[2];

	assert_int_equal(pwrite(fd, "x", 1, 5 * MIB), 1);
	/* the clock of the file system may be coarse: surely later than before */
	assert_int_equal(fstat(fd, &st), 0);
	t[0] = t[1] = (struct timespec){ st.st_mtim.tv_sec + 1, st.st_mtim.tv_nsec };
	assert_int_equal(futimens(fd, t), 0);
	close(fd);
}

static void a_changed_parent_is_named_and_refused(void **state)
{
	struct err e;

	(void)state;
	make();
	scribble("mid");
	assert_int_equal(try_open(false, false, &e), -ESTALE);
	assert_string_equal(e.code, "disk-backing-changed");
	assert_non_null(strstr(e.detail, "\"mid\""));
	/* what is there can still be read */
	assert_int_equal(try_open(true, false, &e), 0);
	/* and deeper down too */
	make();
	scribble("base");
	assert_int_equal(try_open(false, false, &e), -ESTALE);
	assert_non_null(strstr(e.detail, "\"base\""));
}

static void an_unsafe_rebase_accepts_it(void **state)
{
	struct blk_spec base, mid, top;
	struct err e = { 0 };

	(void)state;
	make();
	scribble("mid");
	base = spec("base", "file", true);
	mid = spec("mid", "qcow2", true);
	top = spec("top", "qcow2", false);
	mid.backing = &base;
	top.backing = &mid;
	struct blk_spec base2 = spec("base", "file", true), mid2 = spec("mid", "qcow2", true);

	mid2.backing = &base2;
	assert_int_equal(blkjob_rebase(NULL, &top, &mid2, "mid", "qcow2", true, &e), 0);
	assert_int_equal(try_open(false, true, &e), 0);
	assert_int_equal(try_open(false, true, &e), 0);
	scribble("mid");
	assert_int_equal(try_open(false, false, &e), -ESTALE);
	if (have_qemu())
		assert_int_equal(qemu_check("top"), 0);
}

static void our_own_commit_and_repair_of_leaks_are_no_change(void **state)
{
	struct blk_spec base, mid, top, s;
	struct blkjob_check c;
	struct err e = { 0 };

	(void)state;
	make();
	base = spec("base", "file", true);
	mid = spec("mid", "qcow2", false);
	top = spec("top", "qcow2", false);
	mid.backing = &base;
	top.backing = &mid;
	assert_int_equal(blkjob_commit(NULL, &top, &e), 0);
	assert_int_equal(try_open(false, true, &e), 0);
	s = spec("mid", "qcow2", false);
	assert_int_equal(blkjob_check(&s, BLKJOB_REPAIR_LEAKS, &c, &e), 0);
	assert_int_equal(try_open(false, true, &e), 0);
}

/* die() - as kill -9 would have it, once something was copied */
static void die(void *arg, uint64_t done, uint64_t total)
{
	(void)arg;
	if (done > total / 2)
		raise(SIGKILL);
}

/* a commit ends by force: @depth -1 with the disk not in use, 0 the top, 1 the layer below it */
static void killed_commit(int depth)
{
	const struct blkjob job = { .progress = die };
	int st;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		struct blk_spec base = spec("base", "file", true),
				mid = spec("mid", "qcow2", depth >= 0),
				top = spec("top", "qcow2", false);
		struct blockdev *bd;
		struct err e = { 0 };

		mid.backing = &base;
		top.backing = &mid;
		if (depth < 0)
			_exit(blkjob_commit(&job, &top, &e) ? 1 : 2);
		bd = blk_open(&top, &e);
		if (!bd)
			_exit(3);
		_exit(blk_live_commit(bd, depth, disk_fd(depth ? "base" : "mid", O_RDWR),
				      depth ? "base" : "mid", depth ? "raw" : "qcow2", &job, &e)
			  ? 4
			  : 5);
	}
	assert_int_equal(waitpid(pid, &st, 0), pid);
	if (!WIFSIGNALED(st))
		fail_msg("depth %d: ended with %d before it was killed", depth, WEXITSTATUS(st));
}

static void a_commit_that_was_killed_leaves_a_disk_that_opens(void **state)
{
	struct blk_spec base, mid, top;
	struct err e;

	(void)state;
	for (int depth = -1; depth < 2; depth++) {
		make();
		killed_commit(depth);
		/* what it had copied is surely later than what the overlay remembers */
		run("touch -d '+2 sec' '%s'", disk_path(depth > 0 ? "base" : "mid"));
		if (try_open(false, true, &e))
			fail_msg("depth %d: %s", depth, e.detail);
		if (try_open(false, true, &e))
			fail_msg("depth %d, again: %s", depth, e.detail);
		if (have_qemu())
			assert_int_equal(qemu_check("top"), 0);
	}
	/* one that ends well puts the note back */
	make();
	killed_commit(-1);
	base = spec("base", "file", true);
	mid = spec("mid", "qcow2", false);
	top = spec("top", "qcow2", false);
	mid.backing = &base;
	top.backing = &mid;
	assert_int_equal(blkjob_commit(NULL, &top, &e), 0);
	assert_int_equal(try_open(false, true, &e), 0);
	scribble("mid");
	assert_int_equal(try_open(false, false, &e), -ESTALE);
}

static void a_copy_of_a_parent_with_its_times_is_the_parent(void **state)
{
	struct err e;

	(void)state;
	make();
	assert_int_equal(run("cp -p '%s' '%s' && mv '%s' '%s'", disk_path("mid"), disk_path("mid2"),
			     disk_path("mid2"), disk_path("mid")),
			 0);
	assert_int_equal(try_open(false, true, &e), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_changed_parent_is_named_and_refused),
		cmocka_unit_test(an_unsafe_rebase_accepts_it),
		cmocka_unit_test(our_own_commit_and_repair_of_leaks_are_no_change),
		cmocka_unit_test(a_commit_that_was_killed_leaves_a_disk_that_opens),
		cmocka_unit_test(a_copy_of_a_parent_with_its_times_is_the_parent),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
