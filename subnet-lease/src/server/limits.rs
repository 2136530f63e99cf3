//! What a client may cost: every number that bounds something a client can size. The table in `docs/store.md` is this file.

use std::time::Duration;

/// Largest write, in bytes of its message. etcd's default.
pub(crate) const REQUEST: usize = 3 << 19;
/// Largest message received or, in fragments, sent: the largest write and room for what is around it. As etcd.
pub(crate) const MESSAGE: usize = REQUEST + (1 << 19);
/// Largest message received by services whose requests are a few numbers.
pub(crate) const SMALL_MESSAGE: usize = 64 << 10;
/// Most comparisons, and most operations in a branch, what is nested counted with what is around it. etcd's default.
pub(crate) const OPS: usize = 128;
/// Most comparisons and operations in all branches of a transaction together. Ours.
pub(crate) const OPS_IN_ALL: usize = 1024;
/// Keys that the comparisons of a transaction look at, a value of a kibibyte counting once more. Ours: some ms of work.
pub(crate) const COMPARED: usize = 1 << 18;
/// Bytes of keys and values in one answer, the answers within a transaction counted together. Ours: a page of our own
/// client is far below, and every client can ask for less with a limit.
pub(crate) const ANSWER: usize = 64 << 20;
/// Leases at one time. Ours: twice the hosts of the largest cluster.
pub(crate) const LEASES: usize = 100_000;
/// Watches on one stream, and longest key and end of one, in bytes. Ours.
pub(crate) const WATCHES: usize = 128;
pub(crate) const WATCHED_KEY: usize = 4 << 10;
/// Responses waiting for a client before its stream stops taking batches, and their bytes above a few kibibytes, of all
/// streams together. Ours.
pub(crate) const OUTBOX: usize = 16;
pub(crate) const OUTBOX_SMALL: usize = 4 << 10;
pub(crate) const OUTBOXES: usize = 32 << 20;
/// How long a large response waits for room in these before its stream ends. Ours.
pub(crate) const OUTBOX_PATIENCE: Duration = Duration::from_secs(5);
/// Connections at one time: the one that was silent for longest makes room. Ours: half of what an unprivileged process may
/// open.
pub(crate) const CONNECTIONS: usize = 512;
/// Streams of one connection at one time, and requests of one that are worked on. Ours.
pub(crate) const STREAMS: u32 = 256;
pub(crate) const AT_ONCE: usize = 32;
/// Bytes of a request's headers. Ours.
pub(crate) const HEADERS: u32 = 16 << 10;
/// Time for a request to arrive and be answered, and for a connection to come to its first request. Ours.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
pub(crate) const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Time for a client to shake hands.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);
/// Refused connections are logged this often at most.
pub(crate) const LOG_PAUSE: Duration = Duration::from_secs(10);
