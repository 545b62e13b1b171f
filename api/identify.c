/* identify.c - who is at the other end of a connection, and which role that is.
 *
 * Over the unix socket the kernel says: SO_PEERCRED and SO_PEERGROUPS, as of the client's connect(2).
 * Root is an admin; so is, in a daemon that somebody runs as himself, that user. Everybody else has the
 * role of the highest of the three groups that he is in, or none. The groups' numbers come from priv:
 * there is no /etc/group in here.
 * Over TLS a certificate that verifies against tls_ca is its common name, with the role that vmd.conf
 * gives that name. A request may bring a bearer token instead; then core says who that is
 * (core_auth()).
 * Trust: the certificate is the client's until it is verified; its name goes to logs and to the audit
 * trail, so only printable names count.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "api/server.h"

#define IDENTIFY_GROUPS 65536 /* NGROUPS_MAX */

static bool identify_in_group(gid_t want, const struct ucred *cred, const gid_t *groups,
			      size_t count)
{
	if (want == (gid_t)-1)
		return false;
	if (cred->gid == want)
		return true;
	for (size_t i = 0; i < count; i++)
		if (groups[i] == want)
			return true;
	return false;
}

int identify_unix(struct api *a, struct conn *c)
{
	/* scratch of the one loop; holds nothing between calls */
	static gid_t groups[IDENTIFY_GROUPS];
	struct ucred cred;
	socklen_t len = sizeof(cred), glen = sizeof(groups);
	size_t n;

	if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	if (getsockopt(c->fd, SOL_SOCKET, SO_PEERGROUPS, groups, &glen) < 0)
		glen = 0;
	n = glen / sizeof(gid_t);
	c->uid = cred.uid;
	snprintf(c->conn_principal, sizeof(c->conn_principal), "uid:%u", cred.uid);
	if (cred.uid == 0 || (a->user_mode && cred.uid == a->own_uid) ||
	    identify_in_group(a->gid_admin, &cred, groups, n))
		c->conn_role = ROLE_ADMIN;
	else if (identify_in_group(a->gid_operator, &cred, groups, n))
		c->conn_role = ROLE_OPERATOR;
	else if (identify_in_group(a->gid_viewer, &cred, groups, n))
		c->conn_role = ROLE_VIEWER;
	return 0;
}

static enum role identify_role(const char *word, size_t n)
{
	static const struct {
		const char *word;
		enum role role;
	} rows[] = { { "admin", ROLE_ADMIN },
		     { "operator", ROLE_OPERATOR },
		     { "viewer", ROLE_VIEWER } };

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (strlen(rows[i].word) == n && !memcmp(rows[i].word, word, n))
			return rows[i].role;
	return ROLE_NONE;
}

/* "alice:admin, build host:operator": what is @cn? priv has checked the form. */
static enum role identify_cert_role(const struct api *a, const char *cn)
{
	const char *p = a->cert_clients;
	size_t want = strlen(cn);

	while (*p) {
		size_t n = strcspn(p, ","), used = n;
		const char *colon;

		while (used && p[used - 1] == ' ')
			used--;
		colon = memrchr(p, ':', used);
		if (colon && (size_t)(colon - p) == want && !memcmp(p, cn, want))
			return identify_role(colon + 1, used - want - 1);
		p += n;
		p += strspn(p, ", ");
	}
	return a->cert_role;
}

void identify_tls(struct api *a, struct conn *c)
{
	char cn[API_PRINCIPAL_LEN - 8];

	if (!tls_peer_name(c->tls, cn, sizeof(cn)) || !*cn)
		return;
	for (const char *p = cn; *p; p++)
		if ((unsigned char)*p < 32 || *p == 127)
			return;
	if (!utf8_valid(cn, strlen(cn)))
		return;
	snprintf(c->conn_principal, sizeof(c->conn_principal), "cert:%s", cn);
	c->conn_role = identify_cert_role(a, cn);
}
