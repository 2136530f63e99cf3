//! Traffic rules: by which program they are made, chosen once a run, and what they follow from.

use backends::rules::{self, Firewall, Renderer, RuleInput, Standing};
use backends::{KernelState, LocalNode, Object};
use serde::{Deserialize, Serialize};
use subnet_lease::Family;
use tracing::info;

use super::NodeCore;

/// How the rules are made.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rules {
    renderer: Option<Renderer>,
    /// Why so; or why there are none.
    why: String,
}

impl Rules {
    /// How the rules are made, once chosen.
    pub(super) fn renderer(&self) -> Option<Renderer> {
        self.renderer
    }

    /// Both in words, for people.
    pub(super) fn text(&self) -> Option<String> {
        let name = match self.renderer? {
            Renderer::Nftables => "nftables".to_owned(),
            Renderer::Iptables(flavour) => flavour.to_string(),
        };
        Some(format!("{name}: {}", self.why))
    }
}

impl NodeCore {
    /// Chooses once, so that what others load later does not move rules from here to there. Without any way to make
    /// them the daemon ends at its start, as it does when a backend can't work.
    ///
    /// # Errors
    /// One sentence, where rules are wished for and nothing here can make them.
    pub(super) fn choose_renderer(&mut self, firewall: &Firewall) -> Result<(), String> {
        let Some(network) = self.membership.network().filter(|_| self.rules.renderer.is_none()) else {
            return Ok(());
        };
        if let Some((renderer, other)) = self.membership.renderer_of_others() {
            let why = format!("as network {other} of this host has it");
            self.rules = Rules { renderer: Some(renderer), why };
            return Ok(());
        }
        let settings = &self.settings.rules;
        let nothing_wished = !settings.masquerade && !settings.forward_rules;
        match rules::choose_renderer(settings.program, network.config.enable_nftables, firewall) {
            Ok((renderer, why)) => {
                self.rules = Rules { renderer: Some(renderer), why: why.to_owned() };
                info!("traffic rules by {}", self.rules.text().unwrap_or_default());
            }
            Err(sentence) if !nothing_wished => return Err(sentence),
            Err(_) => {}
        }
        Ok(())
    }

    /// The wished rules, and the rules of others that drop pods' packets.
    pub(super) fn standing_rules(&self, node: &LocalNode, firewall: &Firewall) -> (Vec<Object>, Vec<String>) {
        let Some(renderer) = self.rules.renderer else { return (Vec::new(), Vec::new()) };
        let Standing { tables, iptables, trusted, in_the_way } =
            rules::standing(&self.rule_input(node), renderer, firewall);
        let tables = tables.into_iter().map(|t| Object::Table(Box::new(t)));
        let iptables = iptables.into_iter().map(|rules| Object::Iptables(Box::new(rules)));
        let trusted = trusted.into_iter().map(Object::Trusted);
        (tables.chain(iptables).chain(trusted).collect(), in_the_way)
    }

    /// iptables has no notifications. Where rules of ours are in iptables they are read as often as flannel reads them.
    pub(super) fn pace_audits(&mut self, want: &KernelState) {
        if want.iter().any(|rules| matches!(rules, Object::Iptables(_))) {
            self.pass.audit_every(self.settings.iptables_resync);
        }
    }

    fn rule_input(&self, node: &LocalNode) -> RuleInput {
        let pair = |f| Some((node.network.network(f)?.network, node.subnets.family(f)?));
        RuleInput {
            names: self.settings.rule_names,
            networks: Family::ALL.into_iter().filter_map(pair).collect(),
            settings: self.settings.rules.clone(),
        }
    }
}
