//! What went wrong, in words that name the cause and the setting that mends it.

use std::path::PathBuf;

use etcd_client::Error;

use super::config::EtcdConfig;
use crate::store::StoreError;

/// One server, and what we bring to be let in, as far as sentences name it.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) endpoint: String,
    pub(super) prefix: String,
    authority: Option<PathBuf>,
    certificate: Option<PathBuf>,
    user: Option<String>,
}

impl Way {
    pub(super) fn new(endpoint: &str, config: &EtcdConfig) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            prefix: config.prefix.clone(),
            authority: config.ca_file.clone(),
            certificate: config.cert_file.clone(),
            user: config.username.clone(),
        }
    }

    pub(super) fn silent(&self) -> StoreError {
        StoreError::Unreachable(format!("{} does not answer", self.endpoint))
    }

    /// An error of the client; what it was about where that is a key.
    pub(super) fn told(&self, key: Option<&str>, error: &Error) -> StoreError {
        match error {
            Error::GRpcStatus(status) => {
                // A status with a cause beneath it is the client's own and about the way there; one without is the server's.
                if let Some(cause) = innermost(status) {
                    return self.unreached(&cause);
                }
                // The code's type belongs to a crate that this one does not name; its numbers are gRPC's.
                self.answered(i32::from(status.code()), status.message(), key)
            }
            Error::TransportError(error) => {
                self.unreached(&innermost(error).unwrap_or_else(|| error.to_string()))
            }
            error => StoreError::Unreachable(format!("{}: {error}", self.endpoint)),
        }
    }

    fn answered(&self, code: i32, message: &str, key: Option<&str>) -> StoreError {
        let message = message.trim_start_matches("etcdserver: ");
        let sentence = format!("{}: {message}", self.endpoint);
        let auth = ["auth", "user name", "token"].iter().any(|word| message.contains(word));
        match code {
            7 | 16 => StoreError::Denied(format!("{sentence}{}", self.access(message, key))),
            3 | 9 if auth => StoreError::Denied(format!("{sentence}{}", self.access(message, key))),
            8 if message.contains("space") => StoreError::Failing(format!(
                "{sentence}: nothing can be written until it is compacted, defragmented and its alarm disarmed (etcdctl)"
            )),
            // The gRPC library's words for an answer above our limit; whoever listed asks for less.
            8 | 11
                if ["message length too large", "message larger than max"]
                    .iter()
                    .any(|words| message.contains(words)) =>
            {
                StoreError::Failing(sentence)
            }
            12 => StoreError::Unsupported(format!("{sentence} (etcd 3.4 or newer is needed)")),
            _ => StoreError::Failing(sentence),
        }
    }

    /// Who lacks which right, and what gives it.
    fn access(&self, message: &str, key: Option<&str>) -> String {
        let prefix = self.prefix.trim_end_matches('/');
        match &self.user {
            None => ": it wants a user name and a password (etcd-username, etcd-password)".to_owned(),
            Some(user) if message.contains("permission denied") => {
                let key = key.unwrap_or(prefix);
                format!(
                    ": no role of user {user:?} may read and write {key}; etcdctl role grant-permission ROLE readwrite --prefix=true \
                     {prefix}/ allows it"
                )
            }
            Some(user) if message.contains("invalid user ID or password") => {
                format!(": user {user:?} or its password is wrong (etcd-username, etcd-password)")
            }
            Some(_) => String::new(),
        }
    }

    /// The way to the server failed.
    fn unreached(&self, cause: &str) -> StoreError {
        let endpoint = &self.endpoint;
        // A certificate is asked for when the handshake seems over (TLS 1.3), so the refusal is a closed connection; and so is
        // the answer of a server that expects a handshake, or none: the reset overtakes what else it said.
        let lower = cause.to_lowercase();
        let hung_up = ["connection closed", "broken pipe", "connection reset"]
            .iter()
            .any(|words| lower.contains(words));
        let hint = match (endpoint.starts_with("https://"), &self.certificate) {
            (true, None) => {
                "it may want a certificate of this client (etcd-certfile), or does not speak TLS (http:// instead of https://)"
            }
            (true, Some(_)) => {
                "it may refuse our certificate (etcd-certfile), or does not speak TLS (http:// instead of https://)"
            }
            (false, _) => "it may speak TLS (https:// instead of http://)",
        };
        match TLS.iter().find(|(words, _)| cause.contains(words)) {
            Some((_, trouble)) => {
                StoreError::Untrusted(format!("{endpoint}: {} ({cause})", self.meaning(*trouble)))
            }
            None if hung_up => {
                StoreError::Unreachable(format!("{endpoint}: {cause}; unless it was just stopped, {hint}"))
            }
            None => StoreError::Unreachable(format!("{endpoint}: {cause}")),
        }
    }

    fn meaning(&self, trouble: Trouble) -> String {
        let name = |path: &PathBuf| path.display().to_string();
        match trouble {
            Trouble::Its(what) => what.to_owned(),
            Trouble::Issuer => match &self.authority {
                Some(file) => format!(
                    "its certificate is signed by an authority that is not in etcd-cafile ({})",
                    name(file)
                ),
                None => "its certificate is signed by an authority that this host does not know; etcd-cafile names one".to_owned(),
            },
            Trouble::Ours => match &self.certificate {
                Some(file) => format!("it does not accept our certificate (etcd-certfile, {})", name(file)),
                None => "it wants a certificate of this client (etcd-certfile and etcd-keyfile)".to_owned(),
            },
            Trouble::Key => "the key in etcd-keyfile does not belong to the certificate in etcd-certfile".to_owned(),
        }
    }
}

/// What is wrong with TLS.
#[derive(Clone, Copy)]
enum Trouble {
    /// With the server's side.
    Its(&'static str),
    Issuer,
    Ours,
    Key,
}

const NAME: Trouble = Trouble::Its("its certificate is not valid for that name");
const EXPIRED: Trouble = Trouble::Its("its certificate has expired");
const EARLY: Trouble = Trouble::Its("its certificate is not valid yet, or this host's clock is slow");
const PLAIN: Trouble = Trouble::Its("it does not speak TLS (http:// instead of https://)");

/// What the TLS library says, and what that means; the first that is found counts.
const TLS: [(&str, Trouble); 12] = [
    ("KeyMismatch", Trouble::Key),
    ("certificate not valid for name", NAME),
    ("NotValidForName", NAME),
    ("certificate expired", EXPIRED),
    ("Expired", EXPIRED),
    ("not valid yet", EARLY),
    ("UnknownIssuer", Trouble::Issuer),
    // By an authority of the same name with another key.
    ("BadSignature", Trouble::Issuer),
    ("invalid peer certificate", Trouble::Its("its certificate is not accepted")),
    ("received fatal alert", Trouble::Ours),
    ("received corrupt message", PLAIN),
    ("tls handshake eof", PLAIN),
];

/// The innermost cause says it best: "connection refused" rather than "transport error".
fn innermost(error: &dyn std::error::Error) -> Option<String> {
    let mut cause = error.source()?;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Some(cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(change: impl FnOnce(&mut EtcdConfig)) -> Way {
        let mut config = EtcdConfig::default();
        change(&mut config);
        Way::new("https://10.0.0.1:2379", &config)
    }

    #[test]
    fn an_unknown_authority_is_said_to_be_missing_in_the_file_only_where_there_is_one() {
        let cause = "invalid peer certificate: UnknownIssuer";
        let none = way(|_| {}).unreached(cause).to_string();
        assert!(none.contains("that this host does not know; etcd-cafile names one"), "{none}");
        let some = way(|c| c.ca_file = Some("/etc/ca.pem".into())).unreached(cause).to_string();
        assert!(some.contains("that is not in etcd-cafile (/etc/ca.pem)"), "{some}");
    }

    #[test]
    fn a_certificate_that_is_missing_is_told_from_one_that_is_refused() {
        let cause = "received fatal alert: CertificateRequired";
        let none = way(|_| {}).unreached(cause).to_string();
        assert!(
            none.contains("it wants a certificate of this client (etcd-certfile and etcd-keyfile)"),
            "{none}"
        );
        let some = way(|c| c.cert_file = Some("/etc/me.pem".into())).unreached(cause).to_string();
        assert!(some.contains("does not accept our certificate (etcd-certfile, /etc/me.pem)"), "{some}");
    }

    #[test]
    fn a_right_that_is_missing_is_named_with_user_key_and_the_command_that_gives_it() {
        let user = way(|c| c.username = Some("flannel".into()));
        let said =
            user.answered(7, "etcdserver: permission denied", Some("/coreos.com/network/config")).to_string();
        for part in [
            "no role of user \"flannel\" may read and write /coreos.com/network/config",
            "etcdctl role grant-permission ROLE readwrite --prefix=true /coreos.com/network/",
        ] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
        let said = user
            .answered(3, "etcdserver: authentication failed, invalid user ID or password", None)
            .to_string();
        assert!(said.contains("user \"flannel\" or its password is wrong"), "{said}");
        let said = way(|_| {}).answered(3, "etcdserver: user name is empty", None).to_string();
        assert!(said.contains("it wants a user name and a password"), "{said}");
    }
}
