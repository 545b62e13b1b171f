/* roles.h - the daemon's roles: who runs them, what each starts with.
 *
 * `vmd` starts as priv, which forks and executes itself as `vmd --role=core` and `vmd --role=api`.
 * main.c gives up what a role does not need (uid, root directory, capabilities, system calls) and
 * then calls the role's main with the socket to priv. The first message on it is s_setup, from
 * priv:
 *	core: peer = link to api, db_dir = directory of the data base (the role's working directory
 *	      already: open "vmd.db" by that relative name), settings = "key=value" lines of vmd.conf(5)
 *	api:  peer = link to core, listen = the API socket (listening), listen_tls = TCP or -1, settings
 * When api dies, core gets another s_setup with only a new peer. When core dies, priv starts both
 * again.
 * EOF on the socket to priv means that the daemon ends: a role then returns 0.
 */
#ifndef VMD_ROLES_H
#define VMD_ROLES_H

#include <stdbool.h>

/* Both return the exit status. @priv_sock: SOCK_SEQPACKET, owned. vmd/core/, api/ */
int core_main(int priv_sock);
int api_main(int priv_sock);

/* hello.state of a guest, and g_event.state */
enum guest_state {
	GUEST_NEW,   /* waits for its configuration */
	GUEST_BUILT, /* machine made, locked down, never ran */
	GUEST_RUNNING,
	GUEST_PAUSED,
	GUEST_STOPPED, /* powered off, or its CPU gave up: waits for g_quit or g_reset */
};

#endif
