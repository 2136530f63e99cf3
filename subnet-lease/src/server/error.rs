//! What can go wrong: for who starts the server, and for who asks it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tonic::{Code, Status};

use crate::Class;

/// Why the server could not start or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    #[error(
        "refusing to listen on {0}: anyone who reaches it can change every lease; ask clients for certificates \
         (--cert-file, --key-file and --trusted-ca-file), listen on a loopback address, or pass --insecure if the \
         network is trusted"
    )]
    Exposed(SocketAddr),
    #[error("no address to listen on: pass at least one, such as 127.0.0.1:2379")]
    NoAddress,
    #[error("cannot listen on {addr}: {source}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error("cannot use {} for TLS: {reason}", path.display())]
    Certificate { path: PathBuf, reason: String },
    #[error("cannot use the data directory {}: {source}", path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error("{} is in use by another server; stop that one or choose another data directory", .0.display())]
    InUse(PathBuf),
    #[error("{} has format {found}, and this version reads format {known}", path.display())]
    Format { path: PathBuf, found: i64, known: i64 },
    #[error(
        "cannot read {}: {reason}; move the file away, start with an empty store, and write a copy back with `flannelctl \
         store import` (without a copy: `flannelctl network set`; running hosts then claim their subnets again)",
        path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("the server stopped: {0}")]
    Stopped(String),
}

impl ServerError {
    /// What to do next.
    pub fn class(&self) -> Class {
        match self {
            Self::InUse(_) | Self::Listen { .. } => Class::Conflict,
            _ => Class::Fatal,
        }
    }
}

/// Why a request was refused: etcd's wording, since clients compare it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: request is too large")]
    TooLarge,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// gRPC's own words: clients that page ask for less.
    #[error("grpc: trying to send message larger than max ({0} vs. {1})")]
    AnswerTooLarge(usize, usize),
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: server stopped")]
    Stopped,
    #[error("etcdserver: writing to disk failed: {0}")]
    Disk(String),
}

impl ApiError {
    fn code(&self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOps
            | Self::DuplicateKey
            | Self::TooLarge => Code::InvalidArgument,
            Self::Compacted | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::NoSpace | Self::TooManyRequests | Self::AnswerTooLarge(..) => Code::ResourceExhausted,
            Self::LeaseNotFound => Code::NotFound,
            Self::LeaseExists => Code::FailedPrecondition,
            Self::Stopped | Self::Disk(_) => Code::Unavailable,
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
