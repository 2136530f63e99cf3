//! What the core listens to. The shell drops all other notifications, because they cannot change anything.

use backends::kernel::Own;
use backends::rules::RuleNames;
use backends::{Facts, HostLink, IfName, Owner};
use ipnetwork::IpNetwork;

use super::{Effect, NodeCore};

/// What a notification must concern to be passed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listen {
    /// The cluster's networks.
    pub networks: Vec<IpNetwork>,
    /// The links this configuration produces.
    pub links: Vec<IfName>,
    /// The underlay link.
    pub external: Option<IfName>,
    /// The host's links as they were read last: a notification with the same content is dropped. Empty while they are read,
    /// since the answer may lack what changes meanwhile.
    pub known: Vec<HostLink>,
    /// Chains of others that forwarded packets pass, as they were found last.
    pub gates: Vec<String>,
    /// What our rules are called.
    pub rules: RuleNames,
}

impl NodeCore {
    /// Before the host is read.
    pub(super) fn listen_to_all_links(&mut self, effects: &mut Vec<Effect>) {
        self.listen_anew(effects, |listen| listen.known.clear());
    }

    /// The host was read.
    pub(super) fn listen_beyond(&mut self, facts: &Facts, effects: &mut Vec<Effect>) {
        self.listen_anew(effects, |listen| listen.known.clone_from(&facts.links));
    }

    /// Before our own objects are read.
    pub(super) fn listen_for(&mut self, owner: &Owner, effects: &mut Vec<Effect>) {
        self.listen_anew(effects, |listen| {
            listen.networks.clone_from(&owner.networks);
            listen.links.clone_from(&owner.names);
            listen.external = owner.external;
            listen.rules = owner.rules;
        });
    }

    /// Our own objects were read, and with them what others filter.
    pub(super) fn listen_to_gates(&mut self, own: &Own, effects: &mut Vec<Effect>) {
        self.listen_anew(effects, |listen| listen.gates = own.firewall.gates());
    }

    fn listen_anew(&mut self, effects: &mut Vec<Effect>, change: impl FnOnce(&mut Listen)) {
        let listen = &mut self.pass.listen;
        let before = listen.clone();
        change(listen);
        if *listen != before {
            effects.push(Effect::Listen(Box::new(listen.clone())));
        }
    }
}
