//! What went wrong with a request, in words that name the cause.

use std::io;
use std::time::Duration;

use rustls::{CertificateError, Error};

use super::kubeconfig::Server;
use super::proto::object;
use crate::store::StoreError;

/// Why a request has no result.
#[derive(Debug)]
pub(super) enum Fault {
    /// There was no answer, or none that can be used.
    Store(StoreError),
    /// The server answers with a status of its own.
    Answer(Answer),
}

/// A status other than success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        let answer = match fault {
            Fault::Store(error) => return error,
            Fault::Answer(answer) => answer,
        };
        let Answer { code, message, .. } = answer;
        match code {
            401 => Self::Denied(format!("the API server does not accept our credentials (401 {message})")),
            403 => Self::Denied(format!("{message} (a ClusterRole grants it)")),
            409 => Self::Raced(message),
            404 => Self::Failing(format!("the API server answers 404: {message}")),
            429 => Self::Failing(format!("the API server has too many requests (429 {message})")),
            _ => Self::Failing(format!("the API server answers {code}: {message}")),
        }
    }
}

impl Answer {
    /// From an answer's code and body, which is a `Status` as protobuf, as JSON, or any text of a proxy.
    pub(super) fn read(code: u16, retry_after: Option<Duration>, body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Status {
            message: String,
        }
        let found = match object(body) {
            Ok(("Status", fields)) => {
                let message = fields.flatten().find(|(number, _)| *number == 3);
                message.and_then(|(_, value)| value.text().ok()).map(str::to_owned)
            }
            _ => serde_json::from_slice::<Status>(body).ok().map(|status| status.message),
        };
        let text = found.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
        let line = text.lines().next().unwrap_or_default();
        let message = line.chars().filter(|c| !c.is_control()).take(300).collect();
        Self { code, message, retry_after }
    }

    /// From an event of a watch, whose code is within.
    pub(super) fn of_event(status: &[u8]) -> Self {
        let code = match object(status) {
            Ok((_, fields)) => {
                let code = fields.flatten().find(|(number, _)| *number == 6);
                code.and_then(|(_, value)| value.number().ok()).and_then(|code| code.try_into().ok())
            }
            Err(_) => None,
        };
        Self::read(code.unwrap_or(0), None, status)
    }
}

/// The way to the server failed.
pub(super) fn unreached(server: &Server, error: &io::Error) -> StoreError {
    let place = server.to_string();
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let Some(error) = inner else {
        // A server that wants TLS, or none, closes the connection.
        return StoreError::Unreachable(format!("{place}: {error}"));
    };
    let meaning = match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is signed by an authority that is not in certificate-authority".to_owned()
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired, or this host's clock is fast".to_owned()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid yet, or this host's clock is slow".to_owned(),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is not valid for that name (tls-server-name names another)".to_owned(),
        Error::AlertReceived(alert) => {
            format!("it does not accept our certificate (client-certificate; alert {alert:?})")
        }
        Error::InvalidMessage(_) => "it does not speak TLS (http:// instead of https://)".to_owned(),
        other => other.to_string(),
    };
    StoreError::Untrusted(format!("{place}: {meaning}"))
}

#[cfg(test)]
mod tests {
    use super::super::proto::tests::{field, whole};
    use super::*;

    #[test]
    fn a_status_is_read_from_protobuf_json_or_text() {
        let message = r#"nodes "a" is forbidden: User "u" cannot patch resource "nodes/status" in API group "" at the cluster scope"#;
        let status = [field(2, "Failure"), field(3, message), vec![6 << 3, 0x93, 0x03]].concat();
        let status = whole("Status", &status);
        assert_eq!(
            Answer::of_event(&status),
            Answer { code: 403, message: message.into(), retry_after: None }
        );
        let json = format!("{{\"kind\":\"Status\",\"message\":{message:?}}}");
        let denied: StoreError = Fault::Answer(Answer::read(403, None, json.as_bytes())).into();
        assert!(denied.to_string().contains("cannot patch resource \"nodes/status\""), "{denied}");
        let proxy = Answer::read(502, None, b"Bad Gateway\n<html>");
        assert_eq!(
            StoreError::from(Fault::Answer(proxy)),
            StoreError::Failing("the API server answers 502: Bad Gateway".into())
        );
    }
}
