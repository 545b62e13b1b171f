/* api.h - the api role: HTTP in front of core. */
#ifndef API_API_H
#define API_API_H

/* api_main() - serve until core or priv goes away. @setup_fd: the socket to priv (SOCK_SEQPACKET),
 * which sends s_setup first.
 * Return: the process's exit status. */
int api_main(int setup_fd);

#endif
