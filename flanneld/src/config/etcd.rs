//! How etcd is reached.

use std::net::Ipv6Addr;

use subnet_lease::etcd::EtcdConfig;

use super::node::{ConfigReader, path};

/// The longest prefix, in bytes: it is in the alias of every link, which the kernel cuts at 256.
const PREFIX_MAX: usize = 200;

/// Reads the `etcd-…` settings, without opening the files that they name.
pub(super) fn read(read: &mut ConfigReader<'_>) -> EtcdConfig {
    let key_file = read.optional("etcd-keyfile", path);
    let cert_file = read.optional("etcd-certfile", path);
    let ca_file = read.optional("etcd-cafile", path);
    // flannel then leaves out TLS without a word.
    read.together(["etcd-keyfile", "etcd-certfile"]);
    read.together(["etcd-username", "etcd-password"]);
    let secure = cert_file.is_some() || ca_file.is_some();
    EtcdConfig {
        endpoints: read.one("etcd-endpoints", |text| endpoints(text, secure)),
        prefix: read.one("etcd-prefix", prefix),
        username: read.optional("etcd-username", |text| Ok(text.to_owned())),
        password: read.optional("etcd-password", |text| Ok(text.to_owned())),
        key_file,
        cert_file,
        ca_file,
        ..EtcdConfig::default()
    }
}

/// A comma list of servers. One without a scheme is `https` where certificates are given, else `http`, as in Go's client.
fn endpoints(text: &str, secure: bool) -> Result<Vec<String>, String> {
    let scheme = if secure { "https" } else { "http" };
    let all = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let all: Vec<_> = all.map(|part| endpoint(part, scheme)).collect::<Result<_, _>>()?;
    let tls = all.iter().filter(|url| url.starts_with("https://")).count();
    match all.len() {
        0 => Err("no server (http://ADDRESS:PORT, separated by commas)".to_owned()),
        n if tls == 0 || tls == n => Ok(all),
        _ => Err("some servers with http and some with https".to_owned()),
    }
}

fn endpoint(text: &str, scheme: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or((scheme, text));
    let scheme = scheme.to_ascii_lowercase();
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err(
            "a password has no place in an address: --etcd-username, $FLANNELD_ETCD_PASSWORD".to_owned()
        );
    }
    // Only an address in brackets has colons.
    let is_host = |host: &str| match host.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && !host.contains([':', '[', ']']),
    };
    let port = rest.rsplit_once(':').filter(|(host, _)| is_host(host)).map(|(_, port)| port.parse::<u16>());
    let plain = rest.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != '?');
    if !matches!(scheme.as_str(), "http" | "https") || !matches!(port, Some(Ok(_))) || !plain {
        return Err(format!("{text:?} is no server (http://ADDRESS:PORT or https://ADDRESS:PORT)"));
    }
    Ok(format!("{scheme}://{rest}"))
}

/// Cleans a key the way Go joins paths, so that both daemons name the same key.
pub(crate) fn prefix(text: &str) -> Result<String, String> {
    let rooted = text.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => _ = parts.pop(),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let clean = format!("{}{}", if rooted { "/" } else { "" }, parts.join("/"));
    if parts.is_empty()
        || clean.len() > PREFIX_MAX
        || clean.chars().any(|c| c.is_control() || c == '\u{fffd}')
    {
        return Err(format!("not a key (1 to {PREFIX_MAX} bytes between slashes, UTF-8)"));
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_cleaned_as_go_cleans_a_path() {
        for (written, meant) in [
            ("/coreos.com/network", "/coreos.com/network"),
            ("/coreos.com/network/", "/coreos.com/network"),
            ("//coreos.com//network", "/coreos.com/network"),
            ("coreos.com/./network", "coreos.com/network"),
            ("/a/b/../c", "/a/c"),
            ("/../a", "/a"),
            ("../a", "../a"),
        ] {
            assert_eq!(prefix(written).as_deref(), Ok(meant), "{written}");
        }
        for written in ["", "/", "//", "/a/..", ".", "/a\n", &"/x".repeat(101)] {
            assert!(prefix(written).is_err(), "{written:?}");
        }
    }

    #[test]
    fn servers_are_a_comma_list_of_one_scheme() {
        let list = |text, secure| endpoints(text, secure).map(|all| all.join(" "));
        assert_eq!(list("http://a:1, http://b:2/ ,", false).as_deref(), Ok("http://a:1 http://b:2"));
        assert_eq!(list("a:1", false).as_deref(), Ok("http://a:1"));
        assert_eq!(list("a:1,[::1]:2", true).as_deref(), Ok("https://a:1 https://[::1]:2"));
        for bad in [
            "",
            ",",
            "http://a",
            "unix://a:1",
            "http://a:1,https://b:1",
            "http://:1",
            "a:70000",
            "http://a:1/x",
        ] {
            assert!(endpoints(bad, false).is_err(), "{bad:?}");
        }
        let refused = endpoints("http://root:hunter2@a:1", false).unwrap_err();
        assert!(!refused.contains("hunter2"), "{refused}");
    }
}
