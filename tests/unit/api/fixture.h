/* fixture.h - a real api process between a core played by the test and clients on its real socket.
 */
#ifndef TESTS_API_FIXTURE_H
#define TESTS_API_FIXTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "vmd/proto.h"

struct fixture {
	pid_t pid;
	int priv, core; /* our ends */
	char dir[64], sock[96];
};

/* cmocka set-up: *state is a struct fixture with nothing in its read model, not synced */
int fixture_start(void **state);
int fixture_stop(void **state);

void core_put(struct fixture *f, const char *kind, const char *id, const char *name,
	      int64_t revision, const char *json);
void core_synced(struct fixture *f);
void core_event(struct fixture *f, uint64_t seq, const char *json, uint32_t id);
/* next message from api, which must be of @type */
void core_expect(struct fixture *f, uint16_t type, struct wire_buf *b);
struct msg_a_request core_expect_request(struct fixture *f, struct wire_buf *b);
void core_reply(struct fixture *f, uint32_t id, struct msg_a_reply *m);

int client_open(struct fixture *f);
void client_send(int fd, const char *text);
/* read until @until is there (NULL: the end of the connection), at most 5 s. Text in a static
 * buffer. */
char *client_read(int fd, const char *until);
/* one reply with a Content-Length or none */
char *client_reply(int fd);
char *client_ask(struct fixture *f, const char *request); /* open, send, reply, close */
bool client_closed(int fd);				  /* within 5 s */

#endif
