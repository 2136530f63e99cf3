//! The net-conf without secrets: other programs of flannel's kind keep keys and passwords in it.

use serde_json::Value;

/// What is recorded as it is: every field of the net-conf that this program reads. Anything else may be a secret
/// (flannel's WireGuard and IPsec backends have `PSK`, cloud backends had access keys).
const KNOWN: [&str; 23] = [
    "Network",
    "IPv6Network",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "Backend",
    "Type",
    "VNI",
    "Port",
    "MTU",
    "GBP",
    "Learning",
    "DirectRouting",
    "MacPrefix",
    "Mode",
    "ListenPort",
    "PersistentKeepaliveInterval",
];
/// Replaces a value that was left out.
const HIDDEN: &str = "***";

/// The net-conf, with every value under an unknown name replaced.
pub fn without_secrets(written: &[u8]) -> String {
    let Ok(mut value) = serde_json::from_slice::<Value>(written) else {
        return format!("(not JSON: {} bytes)", written.len());
    };
    if hide(&mut value, true) {
        return value.to_string();
    }
    String::from_utf8_lossy(written).into_owned()
}

/// Whether anything was hidden.
fn hide(value: &mut Value, known: bool) -> bool {
    match value {
        Value::Object(fields) => {
            let known = |name: &str| known && KNOWN.iter().any(|k| k.eq_ignore_ascii_case(name));
            fields.iter_mut().fold(false, |hidden, (name, value)| hide(value, known(name)) | hidden)
        }
        Value::Array(items) => items.iter_mut().fold(false, |hidden, item| hide(item, known) | hidden),
        Value::String(text) if !known => {
            *text = HIDDEN.to_owned();
            true
        }
        Value::Number(_) if !known => {
            *value = 0.into();
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use subnet_lease::NetworkConfig;

    use super::*;

    #[test]
    fn a_net_conf_of_known_fields_is_written_as_it_is() {
        let text = r#"{ "Network": "10.5.0.0/16", "backend": {"Type": "vxlan", "VNI": 1} }"#;
        assert_eq!(without_secrets(text.as_bytes()), text);
    }

    #[test]
    fn what_is_not_known_is_hidden_at_any_depth_and_means_the_same() {
        let text = r#"{"Network": "10.5.0.0/16", "Token": {"Type": "s3cret", "n": 4711},
            "Backend": {"Type": "vxlan", "PSK": ["s3cret", {"a": "s3cret"}]}}"#;
        let shown = without_secrets(text.as_bytes());
        assert!(!shown.contains("s3cret") && !shown.contains("4711"), "{shown}");
        let parse = |text: &str| NetworkConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(parse(text).0, parse(&shown).0);
    }

    #[test]
    fn what_is_no_json_is_not_written_at_all() {
        assert_eq!(without_secrets(b"{\"PSK\": \"s3cret\""), "(not JSON: 16 bytes)");
    }
}
