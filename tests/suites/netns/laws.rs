//! The real kernel obeys the laws. The suite `pure` checks the same laws on the fake kernel.

use anyhow::anyhow;
use netns_harness::caps::Need;
use tests::conformance::{in_namespace, laws};

use crate::case::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    laws()
        .into_iter()
        .map(|(name, law)| case(format!("law {name}"), move || judge(law)).needing(&NEEDS))
        .collect()
}

const NEEDS: [Need; 5] = [Need::Namespaces, Need::Veth, Need::Vxlan, Need::NfTables, Need::Ipv6];

fn judge(law: fn(&mut dyn tests::conformance::Lab)) -> anyhow::Result<()> {
    in_namespace(law).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        anyhow!("{}", text.unwrap_or_else(|| "a panic without words".to_owned()))
    })
}
