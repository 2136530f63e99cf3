//! The host's list of sysctls that containers may set: one regular expression a line, found anywhere in the name. No
//! list allows all.

use std::io::ErrorKind;

use regex_lite::Regex;

use crate::contract::{Code, During, Failure};
use crate::sys::small_file;

const LIST: &str = "/etc/cni/tuning/allowlist.conf";

/// Whether all of these are allowed.
pub(super) fn all(names: &[&str]) -> Result<(), Failure> {
    match small_file::read(LIST.as_ref()) {
        Ok(list) => judge(&list, names),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).during(Code::Io, || format!("cannot read {LIST}")),
    }
}

fn judge(list: &str, names: &[&str]) -> Result<(), Failure> {
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty());
    let read = |line| Regex::new(line).during(Code::Config, || format!("{LIST} has {line:?}"));
    let allowed: Vec<Regex> = lines.map(read).collect::<Result<_, _>>()?;
    match names.iter().find(|name| !allowed.iter().any(|one| one.is_match(name))) {
        Some(name) => Err(Failure::new(Code::Config, format!("{name} is not allowed on this host"))
            .details(format!("{LIST} names what is"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_allows_what_one_of_its_lines_matches() {
        let list = "^net.ipv4.conf.\\w+.arp_filter$\n\n  ^net\\.core\\.  \n";
        assert!(judge(list, &["net.ipv4.conf.eth0.arp_filter", "net.core.somaxconn"]).is_ok());
        assert!(judge(list, &[]).is_ok());
        let refused = judge(list, &["net.core.somaxconn", "net.ipv4.ip_forward"]).unwrap_err();
        assert!(refused.to_string().contains("net.ipv4.ip_forward"));
        assert!(judge("", &["net.core.somaxconn"]).is_err(), "an empty list allows nothing");
        assert!(judge("(", &[]).unwrap_err().to_string().contains("\"(\""));
    }
}
