/* config.h - vmd.conf(5): "key = value" lines, and what the command line changes of it. Read by
 * main.c and priv; the other roles get the same values as settings text. The file is the
 * administrator's: trusted, but checked. */
#ifndef VMD_CONFIG_H
#define VMD_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"

struct vmd_config {
	char state_dir[256], run_dir[256], socket[256];
	char guest_binary[256], image_binary[256], dnsmasq[256];
	char core_user[64], api_user[64], dnsmasq_user[64];
	char admin_group[64], operator_group[64], viewer_group[64];
	char pool_roots[512], serial_roots[512]; /* colon-separated absolute directories */
	uint64_t socket_mode;
	uint64_t guest_uid_first, guest_uid_count;
	uint64_t guest_log_bytes, guest_log_rate_bytes;
	char cgroup[16]; /* auto v2 v1 none */
	char accel[16], log_level[16];
	char listen[128], tls_cert[256], tls_key[256], tls_ca[256], host_allow[512];
	char tls_client_role[16], tls_clients[1024];
	uint64_t max_upload;
	uint64_t trash_hours, guests_max, spawn_max;
	bool user_mode;
};

void config_defaults(struct vmd_config *c, bool user_mode);
/* config_read() - @path; a missing file is an error only where @must_exist. Errors name path, line
 * and key. */
int config_read(struct vmd_config *c, const char *path, bool must_exist, struct err *e);
/* config_set() - one key, as from a line or an option. */
int config_set(struct vmd_config *c, const char *key, const char *value, struct err *e);
/* config_finish() - paths that follow from others, and checks across keys. */
int config_finish(struct vmd_config *c, struct err *e);
/* config_text() - all of it as "key=value" lines (s_setup.settings, --check-config). Bytes written.
 */
size_t config_text(const struct vmd_config *c, char *buf, size_t len);
/* config_settings() - for the roles: config_text(), and what only root's view of the host tells: the
 * groups' numbers as admin_gid, operator_gid, viewer_gid (the roles have no /etc/group). Bytes
 * written. */
size_t config_settings(const struct vmd_config *c, char *buf, size_t len);
/* config_help() - a line a key, for the man page. */
void config_help(FILE *f);

#endif
