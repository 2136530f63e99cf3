//! Conditions in nft's words, of which we understand those that make sense before a translation.

use backends::netlink::nft::{End, Expr, Field};
use ipnetwork::IpNetwork;
use subnet_lease::Family;

use crate::contract::{Code, Failure};
use crate::plugin::chained::canonical;

/// More rules than this are not made of one configuration's sets.
const MOST: usize = 64;

/// The expressions that these words stand for: those of one rule, or of several where sets make alternatives.
pub(super) fn parse(words: &[String], family: Family) -> Result<Vec<Vec<Expr>>, Failure> {
    let text = words.join(" ");
    // In nft's words a set may stand without blanks.
    let spaced = text.replace('{', " { ").replace('}', " } ").replace(',', " , ");
    let mut rest = spaced.split_whitespace().peekable();
    let mut rules = vec![Vec::new()];
    while let Some(first) = rest.next() {
        let subject = subject(first, &mut rest, family).ok_or_else(|| unknown(&text))?;
        let equal = match rest.peek() {
            Some(&"!=") => rest.next().is_none(),
            Some(&"==") => rest.next().is_some(),
            _ => true,
        };
        let values = values(&mut rest).ok_or_else(|| unknown(&text))?;
        let exprs = |value: &&str| condition(subject, equal, value.trim_matches('"'), family);
        let each: Option<Vec<_>> = values.iter().map(exprs).collect();
        let each = each.ok_or_else(|| unknown(&text))?;
        // None of several values is one rule that compares with each; one of several values is a rule for each.
        let alternatives = if equal { each } else { vec![each.concat()] };
        rules = rules
            .iter()
            .flat_map(|rule| alternatives.iter().map(|more| [&rule[..], more].concat()))
            .collect();
        if rules.len() > MOST {
            return Err(unknown(&text).details(format!("its sets make more than {MOST} combinations")));
        }
    }
    Ok(rules)
}

/// A value, or those of a set: `{ 10.0.0.1, 10.0.0.2 }`.
fn values<'a>(rest: &mut impl Iterator<Item = &'a str>) -> Option<Vec<&'a str>> {
    let is_value = |word: &str| !["{", "}", ","].contains(&word);
    let first = rest.next()?;
    if first != "{" {
        return is_value(first).then(|| vec![first]);
    }
    let mut values = Vec::new();
    loop {
        let value = rest.next().filter(|word| is_value(word))?;
        if !values.contains(&value) {
            values.push(value);
        }
        match rest.next()? {
            "," => {}
            "}" => return Some(values),
            _ => return None,
        }
    }
}

/// What is compared, from its one or two words.
fn subject<'a>(first: &str, rest: &mut impl Iterator<Item = &'a str>, family: Family) -> Option<Field> {
    let here = if family == Family::V4 { "ip" } else { "ip6" };
    let end = |word: &str, source, destination| match word {
        word if word == source => Some(End::Source),
        word if word == destination => Some(End::Destination),
        _ => None,
    };
    match first {
        "meta" => subject(rest.next()?, rest, family),
        "mark" => Some(Field::Mark),
        "iifname" | "oifname" => end(first, "iifname", "oifname").map(Field::Interface),
        "th" | "tcp" | "udp" | "sctp" => end(rest.next()?, "sport", "dport").map(Field::Port),
        family_word if family_word == here => {
            end(rest.next()?, "saddr", "daddr").map(|end| Field::Address(family, end))
        }
        _ => None,
    }
}

fn condition(field: Field, equal: bool, value: &str, family: Family) -> Option<Vec<Expr>> {
    let load = Expr::load(field, 0);
    let compare = |bytes: &[u8]| Some(vec![load.clone(), Expr::compare(equal, bytes)]);
    match field {
        Field::Address(_, end) => {
            let net: IpNetwork = value.parse().ok()?;
            let net = IpNetwork::new(canonical(net.network()), net.prefix()).ok()?;
            (Family::of(&net.ip()) == family).then(|| Expr::within(end, net, equal))
        }
        Field::Port(_) => compare(&value.parse::<u16>().ok()?.to_be_bytes()),
        Field::Mark => {
            let hex = value.strip_prefix("0x").map(|digits| u32::from_str_radix(digits, 16));
            compare(&hex.unwrap_or_else(|| value.parse()).ok()?.to_ne_bytes())
        }
        Field::Interface(_) => {
            let (name, whole) = value.strip_suffix('*').map_or((value, true), |name| (name, false));
            let named = !name.is_empty() && name.len() < NAME;
            let mut bytes = name.as_bytes().to_vec();
            // Without the zeros behind it, a name is the beginning of others.
            bytes.resize(if whole { NAME } else { bytes.len() }, 0);
            if named { compare(&bytes) } else { None }
        }
        Field::Protocol | Field::OriginalPort | Field::EthernetSource => None,
    }
}

fn unknown(text: &str) -> Failure {
    Failure::new(Code::Unsupported, format!("the condition {text:?} is not understood")).details(
        "ip or ip6 saddr, daddr; iifname; tcp, udp, sctp or th sport, dport; mark; each with or without !=, and with a value or a set of values; \
         \"backend\": \"iptables\" takes any condition of iptables",
    )
}

/// Bytes of an interface's name with its closing zero.
const NAME: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str, family: Family) -> Option<usize> {
        let words: Vec<_> = text.split(';').map(str::to_owned).collect();
        parse(&words, family).ok().map(|rules| rules.iter().map(Vec::len).sum())
    }

    #[test]
    fn the_conditions_that_make_sense_before_a_translation_are_understood() {
        for (text, exprs) in [
            ("ip saddr 10.0.0.0/8", 2),
            ("ip saddr 10.0.0.0/9", 3),
            ("ip;saddr;!=;10.0.0.1", 2),
            ("iifname != \"cni0\" ip daddr 192.0.2.7", 4),
            ("meta iifname eth*", 2),
            ("tcp sport 1024 mark 0x10", 4),
        ] {
            assert_eq!(count(text, Family::V4), Some(exprs), "{text}");
        }
        assert_eq!(count("ip6 saddr fc00::/7", Family::V6), Some(3));
        let (is, is_not) =
            (parse(&["iifname x".into()], Family::V4), parse(&["iifname != x".into()], Family::V4));
        assert_ne!(is.unwrap(), is_not.unwrap());
    }

    #[test]
    fn a_set_is_a_rule_for_each_value_and_none_of_a_set_is_one_rule() {
        let rules = |text: &str| parse(&[text.into()], Family::V4).unwrap();
        let each = ["10.0.0.0/8", "192.0.2.7"].map(|value| rules(&format!("ip saddr {value}")).concat());
        for text in ["ip saddr { 10.0.0.0/8, 192.0.2.7 }", "ip saddr {10.0.0.0/8,192.0.2.7}"] {
            assert_eq!(rules(text), each, "{text}");
        }
        assert_eq!(rules("tcp dport { 80, 443 } iifname { a, b, c }").len(), 6);
        assert_eq!(rules("ip saddr != { 10.0.0.0/8, 192.0.2.7 }").len(), 1);
        let ports: Vec<_> = (1..=65).map(|port: u16| port.to_string()).collect();
        assert!(parse(&[format!("tcp dport {{ {} }}", ports.join(", "))], Family::V4).is_err());
    }

    #[test]
    fn what_is_not_understood_is_refused_and_not_passed_over() {
        for text in [
            "ip",
            "ip saddr",
            "ip saddr !=",
            "ip saddr fc00::1",
            "ct state new",
            "tcp dport 99999",
            "ip6 saddr fc00::1",
            "iifname *",
            "mark x",
            "ip saddr { 10.0.0.1, 10.0.0.2",
            "ip saddr { 10.0.0.1 10.0.0.2 }",
            "ip saddr { 10.0.0.1, }",
            "ip saddr { }",
            "ip saddr 10.0.0.1, 10.0.0.2",
            "ip saddr { 10.0.0.1, { 10.0.0.2 } }",
            "ip saddr { 10.0.0.1, fc00::1 }",
            "ip saddr @named",
            "meta",
        ] {
            assert_eq!(count(text, Family::V4), None, "{text}");
        }
    }
}
