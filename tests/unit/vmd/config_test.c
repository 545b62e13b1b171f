/* config_test.c - vmd.conf: what is refused, with what words, and what the roles are told. */
#include "vmd/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <grp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/overflow.h"

static struct vmd_config cfg;
static struct err err;

static int fresh(void **state)
{
	config_defaults(&cfg, false);
	err = (struct err){ 0 };
	return 0;
}

static void set(const char *key, const char *value)
{
	assert_int_equal(config_set(&cfg, key, value, &err), 0);
}

static void has(const char *text, const char *part)
{
	if (!strstr(text, part))
		fail_msg("\"%s\" is not in \"%s\"", part, text);
}

static void client_roles_are_checked_entry_by_entry(void **state)
{
	static const char *const good[] = { "alice:admin", "a:b:viewer",
					    "build host:operator, x:none",
					    "alice:admin,bob:viewer ,", "" };
	static const char *const bad[] = { "alice",	"alice:",     ":admin",	   "alice:root",
					   "alice:adm", "a:viewer,b", "a:viewer:", ", a:viewer" };

	set("tls_ca", "/ca.pem");
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		set("tls_clients", good[i]);
		if (config_finish(&cfg, &err) < 0)
			fail_msg("\"%s\" is refused: %s", good[i], err.detail);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		set("tls_clients", bad[i]);
		if (config_finish(&cfg, &err) == 0)
			fail_msg("\"%s\" is taken", bad[i]);
		has(err.detail, "COMMONNAME:ROLE");
	}
}

static void client_roles_without_an_authority_are_refused(void **state)
{
	set("tls_clients", "alice:admin");
	assert_int_equal(config_finish(&cfg, &err), -EINVAL);
	has(err.detail, "tls_ca");
}

static void a_listener_without_certificate_is_refused(void **state)
{
	set("listen", "127.0.0.1:8443");
	set("tls_cert", "/cert.pem");
	assert_int_equal(config_finish(&cfg, &err), -EINVAL);
	has(err.detail, "tls_key");
}

static void unknown_keys_and_words_bring_a_suggestion(void **state)
{
	assert_int_equal(config_set(&cfg, "tls_crt", "/x", &err), -EINVAL);
	has(err.hint, "tls_cert");
	assert_int_equal(config_set(&cfg, "tls_client_role", "operater", &err), -EINVAL);
	has(err.hint, "operator");
	assert_int_equal(config_set(&cfg, "max_upload", "lots", &err), -EINVAL);
	has(err.detail, "size");
	assert_true(config_set(&cfg, "max_upload", "1K", &err) < 0);
	has(err.detail, "out of range");
}

static void roles_are_told_the_numbers_of_groups_that_exist(void **state)
{
	struct group *g = getgrgid(0);
	char text[8192], want[64];

	assert_non_null(g);
	set("admin_group", g->gr_name);
	set("operator_group", "no-such-group-here");
	set("viewer_group", "");
	config_settings(&cfg, text, sizeof(text));
	has(text, "\nadmin_gid=0\n");
	assert_null(strstr(text, "operator_gid="));
	assert_null(strstr(text, "viewer_gid="));
	snprintf(want, sizeof(want), "\nadmin_group=%.40s\n", g->gr_name);
	has(text, want);
	/* cut off at a line, never within one */
	for (size_t len = 1; len < 600; len++) {
		size_t n = config_settings(&cfg, text, len);

		assert_true(n < len && strlen(text) == n);
		assert_true(n == 0 || text[n - 1] == '\n');
	}
}

static void the_longest_settings_fit_the_message(void **state)
{
	char text[8192 + 1], path[256], list[1024];
	size_t n;

	memset(path, 'p', sizeof(path));
	path[0] = '/';
	path[255] = '\0';
	for (size_t i = 0; i < sizeof(list); i++)
		list[i] = "a:viewer,"[i % 9];
	list[1023] = '\0';
	set("tls_cert", path);
	set("tls_key", path);
	set("tls_ca", path);
	set("socket", path);
	set("state_dir", path);
	set("run_dir", path);
	set("guest_binary", path);
	set("image_binary", path);
	set("dnsmasq", path);
	set("tls_clients", list);
	list[511] = '\0';
	set("host_allow", list);
	memset(list, 'r', 511);
	list[0] = '/';
	set("pool_roots", list);
	set("serial_roots", list);
	set("admin_group", "root");
	n = config_settings(&cfg, text, sizeof(text));
	assert_true(n < 8192);
	has(text, "spawn_max=");
	has(text, "\nadmin_gid=0\n");
}

#define T(name) cmocka_unit_test_setup(name, fresh)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(client_roles_are_checked_entry_by_entry),
		T(client_roles_without_an_authority_are_refused),
		T(a_listener_without_certificate_is_refused),
		T(unknown_keys_and_words_bring_a_suggestion),
		T(roles_are_told_the_numbers_of_groups_that_exist),
		T(the_longest_settings_fit_the_message),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
