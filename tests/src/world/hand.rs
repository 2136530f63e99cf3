//! Changes of a kernel by others: notified, and counted as a disturbance of the node's pairs.

use backends::kernel::fake::{Alter, FakeKernel, RoutePlace};
use backends::{Address, IfName, LinkKind, Object, Op, ROUTE_PROTOCOL, Route};

use super::site::{eth0, outward};
use super::trouble::ms;
use super::{Kind, Trouble, What, World};

/// A stranger and an object of ours.
pub(super) struct Fight {
    object: Object,
    left: u32,
    apart: u64,
    /// How often it was put right.
    repairs: u64,
    most: u64,
}

/// Repairs before an object is known to be fought over, and the shortest pause between two afterwards, in milliseconds.
const AT_ONCE: u64 = 6;
const PAUSE: u64 = 500;

impl World {
    pub(super) fn hand(&mut self, n: usize, trouble: &Trouble) {
        use Trouble as T;
        self.watch.touch(n);
        match trouble {
            T::Reboot(back) => self.reboot(n, *back),
            T::MoveAway(back) | T::ReaddressAway(back) | T::RenumberAway(back) => self.restart(n, *back),
            T::Delete(count) => self.stranger(n, *count, Alter::Delete),
            T::Change(count) => self.stranger(n, *count, Alter::Change),
            T::Flush(kind) => self.flush(n, *kind),
            T::Shadow => self.rival(n, true),
            T::Beside => self.rival(n, false),
            T::Fight(left, apart) => self.fight(n, *left, *apart),
            T::FlapTunnel(times, apart) => self.flap_tunnels(n, *times, *apart),
            T::RenameTunnel | T::RemakeTunnel | T::ReaddressTunnel => self.tunnel(n, trouble),
            T::Storm(times) => (0..*times).for_each(|_| self.storm(n)),
            T::Overrun => self.nodes[n].kernel.faults.lose_events(),
            _ => {}
        }
        let node = &mut self.nodes[n];
        let net = &mut node.kernel.net;
        match trouble {
            T::FlapUnderlay => {
                net.set_up(eth0(), false).unwrap();
                node.plug();
            }
            T::Renumber | T::RenumberAway(_) => {
                net.renumber_link(eth0()).unwrap();
                node.plug();
            }
            T::Mtu(mtu) => {
                node.site.mtu = *mtu;
                net.set_mtu(eth0(), *mtu).unwrap();
            }
            T::Move | T::MoveAway(_) => node.resettle(node.site.next_rack(&self.shape)),
            T::Readdress | T::ReaddressAway(_) => node.resettle(node.site.next_address(&self.shape)),
            _ => {}
        }
        self.notify(n);
    }

    fn reboot(&mut self, n: usize, back: u64) {
        self.kill(n);
        let node = &mut self.nodes[n];
        (node.kernel, node.env) = (FakeKernel::new(node.rng.next_u64()), None);
        node.cold = true;
        node.plug();
        self.send(ms(back), n, What::Start);
    }

    fn storm(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let _ = node.kernel.net.set_mtu(eth0(), node.site.mtu);
        self.notify(n);
    }

    fn flap_tunnels(&mut self, n: usize, times: u32, apart: u64) {
        let net = &mut self.nodes[n].kernel.net;
        for link in tunnels(&net.everything()) {
            net.set_up(link, false).unwrap();
            net.set_up(link, true).unwrap();
        }
        if times > 1 {
            self.trouble(n, ms(apart), Trouble::FlapTunnel(times - 1, apart));
        }
    }

    fn tunnel(&mut self, n: usize, trouble: &Trouble) {
        let net = &mut self.nodes[n].kernel.net;
        let all = net.everything();
        let Some(name) = tunnels(&all).first().copied() else { return };
        match trouble {
            Trouble::RenameTunnel => {
                // It answers until it is taken away, and its successor answers when it is there.
                let until = self.now + ms(1000);
                self.watch.doubt(n, until);
                let _ = net.rename_link(name, "renamed0".parse().unwrap());
            }
            Trouble::RemakeTunnel => {
                let links =
                    all.iter().filter_map(|o| if let Object::Link(l) = o { Some(&**l) } else { None });
                let mut links = links;
                let Some(mut other) = links.find(|l| l.name == name).cloned() else { return };
                let LinkKind::Vxlan(vxlan) = &mut other.kind;
                (vxlan.vni, other.tag) = (77, String::new());
                net.delete_link(name).unwrap();
                net.put_link(&other, None).unwrap();
            }
            _ => {
                let of_it = |o: &&Object| matches!(o, Object::Address(a) if a.link == name);
                for object in all.iter().filter(of_it) {
                    net.alter(object, Alter::Delete).unwrap();
                }
                let _ = net.put_address(name, "198.51.100.1/32".parse().unwrap());
            }
        }
    }

    /// A stranger's hand on objects of ours.
    fn stranger(&mut self, n: usize, count: usize, how: Alter) {
        for _ in 0..count {
            if let Some(object) = self.one_of_ours(n, |_| true) {
                self.silent |= matches!(object, Object::Sysctl(..));
                // It may be gone already, with the link that was hit before.
                let _ = self.nodes[n].kernel.net.alter(&object, how);
            }
        }
    }

    fn flush(&mut self, n: usize, kind: Kind) {
        for object in self.ours(n).into_iter().filter(|o| is(kind, o)) {
            let _ = self.nodes[n].kernel.net.alter(&object, Alter::Delete);
        }
    }

    fn rival(&mut self, n: usize, before: bool) {
        let Some(Object::Route(ours)) = self.one_of_ours(n, |o| is(Kind::Routes, o)) else { return };
        let gateway =
            self.nodes[n].site.gateways().into_iter().find(|g| g.dst.is_ipv4() == ours.dst.is_ipv4());
        let Some(via) = gateway.and_then(|g| g.via) else { return };
        let metric = if before { ours.metric } else { ours.metric.wrapping_add(10) };
        let rival = Route { metric, ..outward(ours.dst, via) };
        let _ = self.nodes[n].kernel.net.put_route(&rival, RoutePlace::First);
    }

    fn fight(&mut self, n: usize, left: u32, apart: u64) {
        // What hangs on a link is put right with the link: only what stands alone can be counted.
        if let Some(object) = self.one_of_ours(n, |o| !matches!(o, Object::Sysctl(..))) {
            let most = AT_ONCE + u64::from(left) * apart / PAUSE;
            self.nodes[n].fight = Some(Fight { object, left, apart, repairs: 0, most });
            self.blow(n);
        }
    }

    pub(super) fn blow(&mut self, n: usize) {
        self.watch.touch(n);
        let node = &mut self.nodes[n];
        let Some(fight) = &mut node.fight else { return };
        let how = if fight.left % 2 == 0 { Alter::Delete } else { Alter::Change };
        let _ = node.kernel.net.alter(&fight.object, how);
        fight.left -= 1;
        let (left, apart) = (fight.left, fight.apart);
        if left == 0 {
            node.fight = None;
        } else {
            self.send(ms(apart), n, What::Blow);
        }
        self.notify(n);
    }

    /// Every repair of what is fought over is counted: it must not go on as fast as the fight.
    pub(super) fn count_repairs(&mut self, n: usize, ops: &[Op]) {
        let Some(fight) = &mut self.nodes[n].fight else { return };
        let key = fight.object.key();
        fight.repairs += u64::from(ops.iter().any(|op| op.object().key() == key));
        let (repairs, most) = (fight.repairs, fight.most);
        if repairs > most {
            self.fail(
                "fight",
                Some(n),
                format!("{repairs} repairs of {key:?}, at most {most} were expected"),
            );
        }
    }

    pub(super) fn one_of_ours(&mut self, n: usize, fits: impl Fn(&Object) -> bool) -> Option<Object> {
        let mut all = self.ours(n);
        all.retain(fits);
        // The kind first: what a node has one of is met as often as what it has a thousand of, in worlds of all sizes.
        let mut kinds: Vec<_> = all.iter().map(std::mem::discriminant).collect();
        kinds.dedup();
        let rng = &mut self.nodes[n].rng;
        let kind = *rng.pick(&kinds)?;
        all.retain(|o| std::mem::discriminant(o) == kind);
        rng.pick(&all).cloned()
    }

    fn ours(&self, n: usize) -> Vec<Object> {
        let node = &self.nodes[n];
        let mut all = node.kernel.net.everything();
        let tunnels = tunnels(&all);
        all.retain(|o| match o {
            Object::Route(r) => r.protocol == ROUTE_PROTOCOL,
            Object::Table(_) | Object::Iptables(_) | Object::Trusted(_) => true,
            Object::Link(l) => tunnels.contains(&l.name),
            other => other.link().is_some_and(|l| tunnels.contains(&l)),
        });
        all
    }
}

/// The daemon's tunnel devices.
fn tunnels(all: &[Object]) -> Vec<IfName> {
    let ours = |o: &Object| match o {
        Object::Link(l) if l.name.as_str().starts_with("flannel") => Some(l.name),
        _ => None,
    };
    all.iter().filter_map(ours).collect()
}

pub(super) fn is(kind: Kind, object: &Object) -> bool {
    match object {
        Object::Link(_) => kind == Kind::Links,
        Object::Address(Address { .. }) => kind == Kind::Addresses,
        Object::Fdb(_) => kind == Kind::Forwarding,
        Object::Neigh(_) => kind == Kind::Neighbours,
        Object::Route(_) => kind == Kind::Routes,
        Object::Table(_) | Object::Iptables(_) | Object::Trusted(_) => kind == Kind::Rules,
        Object::Sysctl(..) | Object::Up(_) => false,
    }
}
