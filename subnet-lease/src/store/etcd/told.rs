//! What went wrong, in words that name the cause.

use etcd_client::Error;

use crate::store::StoreError;

pub(super) fn silent(endpoint: &str) -> StoreError {
    StoreError::Unreachable(format!("{endpoint} does not answer"))
}

/// An error of the client, about this endpoint.
pub(super) fn told(endpoint: &str, error: &Error) -> StoreError {
    match error {
        Error::GRpcStatus(status) => {
            // The code's type belongs to a crate that this one does not name; its numbers are gRPC's.
            answered(endpoint, i32::from(status.code()), status.message(), innermost(status))
        }
        Error::TransportError(error) => {
            unreached(endpoint, &innermost(error).unwrap_or_else(|| error.to_string()))
        }
        error => StoreError::Unreachable(format!("{endpoint}: {error}")),
    }
}

/// A status with a cause beneath it is the client's own and about the way there; one without is the server's.
fn answered(endpoint: &str, code: i32, message: &str, cause: Option<String>) -> StoreError {
    if let Some(cause) = cause {
        return unreached(endpoint, &cause);
    }
    let message = message.trim_start_matches("etcdserver: ");
    let sentence = format!("{endpoint}: {message}");
    let auth = ["auth", "user name", "token"].iter().any(|word| message.contains(word));
    match code {
        7 | 16 => StoreError::Denied(sentence),
        3 | 9 if auth => StoreError::Denied(sentence),
        8 if message.contains("space") => StoreError::Failing(format!(
            "{sentence}: nothing can be written until it is compacted, defragmented and its alarm disarmed (etcdctl)"
        )),
        // The gRPC library's words for an answer above our limit; who listed asks for less.
        8 | 11 if message.contains("message length too large") => StoreError::Failing(sentence),
        12 => StoreError::Unsupported(format!("{sentence} (etcd 3.4 or newer is needed)")),
        _ => StoreError::Failing(sentence),
    }
}

/// What the TLS library says, and what that means; it is the first column that is looked for.
const TLS: [(&str, &str); 10] = [
    ("certificate not valid for name", "its certificate is not valid for that name"),
    ("NotValidForName", "its certificate is not valid for that name"),
    ("certificate expired", "its certificate has expired"),
    ("Expired", "its certificate has expired"),
    ("not valid yet", "its certificate is not valid yet, or this host's clock is slow"),
    ("UnknownIssuer", "its certificate is signed by an authority that is not in etcd-cafile"),
    ("invalid peer certificate", "its certificate is not accepted"),
    ("received fatal alert", "it does not accept our certificate (etcd-certfile), or wants one"),
    ("received corrupt message", "it does not speak TLS (http:// instead of https://)"),
    ("tls handshake eof", "it does not speak TLS (http:// instead of https://)"),
];

/// The way to the server failed.
fn unreached(endpoint: &str, cause: &str) -> StoreError {
    // A certificate is asked for when the handshake seems over (TLS 1.3), so the refusal is a closed connection; and so is
    // the answer of a server that expects a handshake, or none: the reset overtakes what else it said.
    let lower = cause.to_lowercase();
    let hung_up =
        ["connection closed", "broken pipe", "connection reset"].iter().any(|words| lower.contains(words));
    let hint = match endpoint.starts_with("https://") {
        true => {
            "it may want a certificate, or another one (etcd-certfile), or does not speak TLS (http:// instead of https://)"
        }
        false => "it may speak TLS (https:// instead of http://)",
    };
    match TLS.iter().find(|(words, _)| cause.contains(words)) {
        Some((_, meaning)) => StoreError::Untrusted(format!("{endpoint}: {meaning} ({cause})")),
        None if hung_up => {
            StoreError::Unreachable(format!("{endpoint}: {cause}; unless it was just stopped, {hint}"))
        }
        None => StoreError::Unreachable(format!("{endpoint}: {cause}")),
    }
}

/// The innermost cause says it best: "connection refused" rather than "transport error".
fn innermost(error: &dyn std::error::Error) -> Option<String> {
    let mut cause = error.source()?;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Some(cause.to_string())
}
