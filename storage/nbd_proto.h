/* nbd_proto.h - numbers of the NBD protocol (doc/proto.md of the NBD project). All big-endian. */
#ifndef STORAGE_NBD_PROTO_H
#define STORAGE_NBD_PROTO_H

#define NBD_MAGIC	  0x4e42444d41474943ULL /* "NBDMAGIC" */
#define NBD_OPT_MAGIC	  0x49484156454f5054ULL /* "IHAVEOPT" */
#define NBD_REP_MAGIC	  0x3e889045565a9ULL
#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_MAGIC  0x67446698u
#define NBD_CHUNK_MAGIC	  0x668e33efu

#define NBD_FLAG_FIXED_NEWSTYLE (1u << 0)
#define NBD_FLAG_NO_ZEROES	(1u << 1)

enum nbd_opt {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META = 9,
	NBD_OPT_SET_META = 10
};

#define NBD_REP_ACK	    1u
#define NBD_REP_SERVER	    2u
#define NBD_REP_INFO	    3u
#define NBD_REP_META	    4u
#define NBD_REP_ERR_UNSUP   0x80000001u
#define NBD_REP_ERR_POLICY  0x80000002u
#define NBD_REP_ERR_INVALID 0x80000003u
#define NBD_REP_ERR_UNKNOWN 0x80000006u
#define NBD_REP_ERR_TOO_BIG 0x80000009u

#define NBD_INFO_EXPORT	    0u
#define NBD_INFO_BLOCK_SIZE 3u

#define NBD_EXPORT_HAS_FLAGS  (1u << 0)
#define NBD_EXPORT_READ_ONLY  (1u << 1)
#define NBD_EXPORT_FLUSH      (1u << 2)
#define NBD_EXPORT_FUA	      (1u << 3)
#define NBD_EXPORT_TRIM	      (1u << 5)
#define NBD_EXPORT_ZEROES     (1u << 6)
#define NBD_EXPORT_DF	      (1u << 7)
#define NBD_EXPORT_MULTI_CONN (1u << 8)

enum nbd_cmd {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_CACHE = 5,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7
};
#define NBD_CMD_FLAG_FUA     (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE (1u << 1)
#define NBD_CMD_FLAG_DF	     (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE (1u << 3)

#define NBD_CHUNK_DONE	 (1u << 0)
#define NBD_CHUNK_NONE	 0u
#define NBD_CHUNK_DATA	 1u
#define NBD_CHUNK_HOLE	 2u
#define NBD_CHUNK_STATUS 5u
#define NBD_CHUNK_ERROR	 0x8001u

#define NBD_STATE_HOLE	1u
#define NBD_STATE_ZERO	2u
#define NBD_STATE_DIRTY 1u /* qemu:dirty-bitmap */

#define NBD_REQUEST_LEN 28u
#define NBD_PAYLOAD_MAX (32u << 20)
#define NBD_OPT_LEN_MAX (16u << 10)
#define NBD_NAME_MAX	4096u

#endif
