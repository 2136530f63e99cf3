//! What a client may cost: every number that bounds something a client can size. The table in `docs/store.md` has these
//! numbers.

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
/// Keys that the comparisons of a transaction read, a value of a kibibyte counting once more. Ours: some ms of work.
pub(crate) const COMPARED: usize = 1 << 18;
/// Bytes of keys and values in one answer, the answers within a transaction counted together. Ours: a page of our own
/// client is far below, and every client can ask for less with a limit.
pub(crate) const ANSWER: usize = 32 << 20;

/// Bytes of keys, values and history above which writes are refused; all of them are in memory. Ours: twice what 50,000
/// hosts need.
pub(crate) const QUOTA: usize = 96 << 20;
/// Changes of history kept for watches that fall behind or come back, as etcd's followers keep.
pub(crate) const KEEP_CHANGES: usize = 10_000;
/// Bytes of history kept. Ours.
pub(crate) const KEEP_BYTES: usize = 32 << 20;
/// Leases at one time. Ours: twice the hosts of the largest cluster.
pub(crate) const LEASES: usize = 100_000;
/// Leases that end in one batch; the next batch ends the others. Ours: some ms of work.
pub(crate) const ENDED_AT_ONCE: usize = 256;

/// Bounds of all clients together. When one is reached, the client that holds most of it loses its connection.
///
/// Calls at one time: requests that are not answered, answers that are not sent, and streams. Ours: four for each
/// connection.
pub(crate) const CALLS: usize = 2048;
/// Bytes of messages received, half or whole, until they are answered. Ours.
pub(crate) const RECEIVED: usize = 16 << 20;
/// Bytes of answers until they are sent. Ours: two of the largest.
pub(crate) const ANSWERS: usize = 2 * ANSWER;
/// Bytes of responses to watches until they are sent. Ours.
pub(crate) const OUTBOXES: usize = 16 << 20;
/// Bytes of watches: their keys, and `WATCH` for each. Ours: four for each connection, on short keys.
pub(crate) const WATCHED: usize = 4 << 20;
/// Bytes that a watch takes beside its keys.
pub(crate) const WATCH: usize = 1 << 10;
/// Messages, answers and responses up to this size are not counted: the number of calls bounds them.
pub(crate) const SMALL: usize = 4 << 10;

/// Watches on one stream, and longest key and end of one, in bytes. Ours.
pub(crate) const WATCHES: usize = 128;
pub(crate) const WATCHED_KEY: usize = 4 << 10;
/// Responses that wait for a client before its stream takes no more batches. Ours.
pub(crate) const OUTBOX: usize = 16;
/// How long a large response waits for room before its stream ends. Ours.
pub(crate) const OUTBOX_PATIENCE: Duration = Duration::from_secs(5);

/// Connections at one time. Ours: half of what an unprivileged process may open.
pub(crate) const CONNECTIONS: usize = 512;
/// Those of them that have not sent a request. Ours: a quarter.
pub(crate) const UNPROVEN: usize = CONNECTIONS / 4;
/// Streams of one connection at one time. Ours.
pub(crate) const STREAMS: u32 = 256;
/// Bytes that a connection, and each stream of it, may send before the server has read them. HTTP/2's default.
pub(crate) const WINDOW: u32 = (64 << 10) - 1;
/// Bytes of a request's headers. Ours.
pub(crate) const HEADERS: u32 = 8 << 10;
/// Time for a request to arrive and be answered, and for a connection to come to its first request. Ours.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
pub(crate) const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Time for a client to shake hands.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);
/// Refused connections are logged this often at most.
pub(crate) const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Jobs that wait for the engine before their senders wait too: no more than there are calls and streams. Ours.
pub(crate) const QUEUE: usize = CALLS;
/// Time for the jobs of one batch, and bytes they write, after which the others wait for the next batch. Ours: the
/// client that used least of the engine is served first, and waits for no more than one batch.
pub(crate) const BATCH: Duration = Duration::from_millis(5);
pub(crate) const BATCH_BYTES: usize = 1 << 20;
