/* core.h - the brain of the daemon: entry of the core role.
 *
 * core owns the state (sqlite), the state machines of guests, operations and policy. It opens no
 * path of its own but the database; everything privileged is asked of priv. One event loop, nothing
 * blocks.
 * @setup_fd: the SOCK_SEQPACKET connection to priv. Its first message is s_setup {peer = connection
 * to api, db_dir, settings "key=value" lines}; afterwards it carries the p_* messages. A later
 * s_setup brings a new peer: api was started again.
 */
#ifndef VMD_CORE_CORE_H
#define VMD_CORE_CORE_H

/* core_main() - run until priv's connection ends or SIGTERM. Return: exit status of the process. */
int core_main(int setup_fd);

#endif
