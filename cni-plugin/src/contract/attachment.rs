//! What an ADD made, in the form of every version of the specification.

use std::net::IpAddr;

use backends::IfName;
use ipnetwork::IpNetwork;

use super::{Code, Failure, Version};
use crate::contract::json::{Json, Object, object};

/// The result of an ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) ips: Vec<Address>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Dns,
}

/// A link that is part of the attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: IfName,
    /// As the plugin wrote it that made the link: not every link is an Ethernet one. Empty when not known.
    pub(crate) mac: String,
    /// In bytes; 0 when not known.
    pub(crate) mtu: u32,
    /// Path of the namespace that it is in; empty for the host's own.
    pub(crate) sandbox: String,
    /// What plugins for devices say about it (1.1.0); passed on.
    pub(crate) device: Device,
}

/// Where a device other than a network link is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) socket_path: String,
    pub(crate) pci_id: String,
}

/// An address that the container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// With the prefix length of its subnet.
    pub(crate) net: IpNetwork,
    pub(crate) gateway: Option<IpAddr>,
    /// Index into the interfaces.
    pub(crate) interface: Option<usize>,
}

/// A route of the container's namespace; what is 0 or absent is left to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) dst: IpNetwork,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) mtu: u32,
    pub(crate) advmss: u32,
    pub(crate) priority: u32,
    pub(crate) table: u32,
    pub(crate) scope: Option<u8>,
}

/// Name resolution, passed on and not acted upon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dns {
    pub(crate) nameservers: Vec<String>,
    pub(crate) domain: String,
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl Attachment {
    /// The document for standard output.
    ///
    /// # Errors
    /// The versions before 0.3.0 cannot say that there is no address.
    pub(crate) fn document(&self, version: Version) -> Result<Object, Failure> {
        let mut out = object([("cniVersion", version.as_str().into())]);
        if version < Version::V0_3_0 {
            self.by_family(&mut out)?;
        } else {
            self.by_list(version, &mut out);
        }
        if version < Version::V1_0_0 || self.dns != Dns::default() {
            out.set("dns", self.dns.object());
        }
        Ok(out)
    }

    fn by_list(&self, version: Version, out: &mut Object) {
        if !self.interfaces.is_empty() {
            out.set("interfaces", self.interfaces.iter().map(|i| i.object(version)).collect::<Vec<_>>());
        }
        if !self.ips.is_empty() {
            out.set("ips", self.ips.iter().map(|ip| ip.object(version)).collect::<Vec<_>>());
        }
        if !self.routes.is_empty() {
            out.set("routes", self.routes.iter().map(|r| r.object(version)).collect::<Vec<_>>());
        }
    }

    /// 0.1.0 and 0.2.0: one address for each family, and its routes beneath it.
    fn by_family(&self, out: &mut Object) -> Result<(), Failure> {
        if self.ips.is_empty() {
            return Err(Failure::new(
                Code::Version,
                "a result without an address does not exist before 0.3.0",
            ));
        }
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.net.is_ipv4() == v4) else { continue };
            let mut family = object([("ip", ip.net.to_string().into())]);
            if let Some(gateway) = ip.gateway {
                family.set("gateway", gateway.to_string());
            }
            let of_family = self.routes.iter().filter(|r| r.dst.is_ipv4() == v4);
            let routes: Vec<_> = of_family.map(|r| r.object(Version::V0_2_0)).collect();
            if !routes.is_empty() {
                family.set("routes", routes);
            }
            out.set(key, family);
        }
        Ok(())
    }

    /// Reads a result of any version.
    pub(crate) fn parse(result: &Object) -> Result<Self, Failure> {
        let mut read = Self::parse_lists(result)?;
        for key in ["ip4", "ip6"] {
            let Some(family) = result.object(key)? else { continue };
            let Some(net) = family.network("ip", "an address with its prefix length")? else { continue };
            read.ips.push(Address { net, gateway: family.address("gateway")?, interface: None });
            for route in family.objects("routes")? {
                read.routes.push(Route::parse(route)?);
            }
        }
        Ok(read)
    }

    fn parse_lists(result: &Object) -> Result<Self, Failure> {
        let each = |key, read: fn(&Object) -> Result<_, Failure>| -> Result<Vec<_>, Failure> {
            result.objects(key)?.into_iter().map(read).collect()
        };
        Ok(Self {
            interfaces: each("interfaces", Interface::parse)?,
            ips: result.objects("ips")?.into_iter().map(Address::parse).collect::<Result<_, _>>()?,
            routes: result.objects("routes")?.into_iter().map(Route::parse).collect::<Result<_, _>>()?,
            dns: Dns::parse(result.object("dns")?)?,
        })
    }
}

impl Interface {
    fn object(&self, version: Version) -> Object {
        let mut out = object([("name", self.name.as_str().into())]);
        if !self.mac.is_empty() {
            out.set("mac", self.mac.as_str());
        }
        if self.mtu != 0 && version >= Version::V1_0_0 {
            out.set("mtu", self.mtu);
        }
        if !self.sandbox.is_empty() {
            out.set("sandbox", self.sandbox.as_str());
        }
        let device = [("socketPath", &self.device.socket_path), ("pciID", &self.device.pci_id)];
        for (key, value) in device.into_iter().filter(|(_, v)| !v.is_empty() && version >= Version::V1_0_0) {
            out.set(key, value.as_str());
        }
        out
    }

    fn parse(from: &Object) -> Result<Self, Failure> {
        Ok(Self {
            name: from.parsed("name", "an interface name")?.unwrap_or_default(),
            mac: from.text("mac")?.unwrap_or_default().to_owned(),
            mtu: from.number("mtu")?.unwrap_or(0),
            sandbox: from.text("sandbox")?.unwrap_or_default().to_owned(),
            device: Device {
                socket_path: from.text("socketPath")?.unwrap_or_default().to_owned(),
                pci_id: from.text("pciID")?.unwrap_or_default().to_owned(),
            },
        })
    }
}

impl Address {
    fn object(&self, version: Version) -> Object {
        let mut out = Object::default();
        if version < Version::V1_0_0 {
            out.set("version", if self.net.is_ipv4() { "4" } else { "6" });
        }
        if let Some(interface) = self.interface {
            out.set("interface", interface);
        }
        out.set("address", self.net.to_string());
        if let Some(gateway) = self.gateway {
            out.set("gateway", gateway.to_string());
        }
        out
    }

    fn parse(from: &Object) -> Result<Self, Failure> {
        let missing = || Failure::new(Code::Decoding, "an address of prevResult has no \"address\"");
        Ok(Self {
            net: from.network("address", "an address with its prefix length")?.ok_or_else(missing)?,
            gateway: from.address("gateway")?,
            interface: from.number("interface")?.map(|n| n as usize),
        })
    }
}

impl Route {
    /// A route with a destination and nothing else.
    pub(crate) fn to(dst: IpNetwork) -> Self {
        Self { dst, gateway: None, mtu: 0, advmss: 0, priority: 0, table: 0, scope: None }
    }

    fn object(&self, version: Version) -> Object {
        let mut out = object([("dst", self.dst.to_string().into())]);
        if let Some(gateway) = self.gateway {
            out.set("gw", gateway.to_string());
        }
        if version < Version::V1_0_0 {
            return out;
        }
        let numbers =
            [("mtu", self.mtu), ("advmss", self.advmss), ("priority", self.priority), ("table", self.table)];
        for (key, value) in numbers.into_iter().filter(|(_, value)| *value != 0) {
            out.set(key, value);
        }
        if let Some(scope) = self.scope {
            out.set("scope", u32::from(scope));
        }
        out
    }

    /// Reads a route of a result or of an `ipam` section.
    pub(crate) fn parse(from: &Object) -> Result<Self, Failure> {
        let missing = || Failure::new(Code::Config, "a route has no \"dst\"");
        let scope = from.number("scope")?.map(u8::try_from).transpose();
        Ok(Self {
            dst: from.network("dst", "a network as 10.0.0.0/8")?.ok_or_else(missing)?,
            gateway: from.address("gw")?,
            mtu: from.number("mtu")?.unwrap_or(0),
            advmss: from.number("advmss")?.unwrap_or(0),
            priority: from.number("priority")?.unwrap_or(0),
            table: from.number("table")?.unwrap_or(0),
            scope: scope.map_err(|_| crate::contract::json::wrong("scope", "at most 255"))?,
        })
    }
}

impl Dns {
    /// Reads a `dns` object, or none.
    pub(crate) fn parse(from: Option<&Object>) -> Result<Self, Failure> {
        let Some(from) = from else { return Ok(Self::default()) };
        Ok(Self {
            nameservers: from.texts("nameservers")?,
            domain: from.text("domain")?.unwrap_or_default().to_owned(),
            search: from.texts("search")?,
            options: from.texts("options")?,
        })
    }

    fn object(&self) -> Object {
        let mut out = Object::default();
        let lists =
            [("nameservers", &self.nameservers), ("search", &self.search), ("options", &self.options)];
        for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            out.set(key, Json::from(list.clone()));
        }
        if !self.domain.is_empty() {
            out.set("domain", self.domain.as_str());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Attachment {
        let interface = |name: &str, mac: &str, sandbox: &str| Interface {
            name: name.parse().unwrap(),
            mac: mac.to_owned(),
            mtu: 1450,
            sandbox: sandbox.into(),
            device: Device::default(),
        };
        let address = |net: &str, gateway: &str| Address {
            net: net.parse().unwrap(),
            gateway: Some(gateway.parse().unwrap()),
            interface: Some(1),
        };
        Attachment {
            interfaces: vec![
                interface("cni0", "02:00:00:00:00:01", ""),
                interface("eth0", "02:00:00:00:00:02", "/run/netns/x"),
            ],
            ips: vec![address("10.1.2.3/24", "10.1.2.1"), address("fc00::3/64", "fc00::1")],
            routes: vec![
                Route {
                    gateway: Some("10.1.2.1".parse().unwrap()),
                    ..Route::to("0.0.0.0/0".parse().unwrap())
                },
                Route { mtu: 1400, ..Route::to("10.1.0.0/16".parse().unwrap()) },
            ],
            dns: Dns::default(),
        }
    }

    fn document(version: Version) -> String {
        sample().document(version).unwrap().to_string()
    }

    #[test]
    fn version_1_1_0_says_everything() {
        assert_eq!(
            document(Version::V1_1_0),
            concat!(
                r#"{"cniVersion":"1.1.0","interfaces":[{"name":"cni0","mac":"02:00:00:00:00:01","mtu":1450},"#,
                r#"{"name":"eth0","mac":"02:00:00:00:00:02","mtu":1450,"sandbox":"/run/netns/x"}],"#,
                r#""ips":[{"interface":1,"address":"10.1.2.3/24","gateway":"10.1.2.1"},"#,
                r#"{"interface":1,"address":"fc00::3/64","gateway":"fc00::1"}],"#,
                r#""routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1"},{"dst":"10.1.0.0/16","mtu":1400}]}"#
            )
        );
    }

    #[test]
    fn version_0_3_1_has_a_family_beside_each_address_and_no_mtu() {
        assert_eq!(
            document(Version::V0_3_1),
            concat!(
                r#"{"cniVersion":"0.3.1","interfaces":[{"name":"cni0","mac":"02:00:00:00:00:01"},"#,
                r#"{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/run/netns/x"}],"#,
                r#""ips":[{"version":"4","interface":1,"address":"10.1.2.3/24","gateway":"10.1.2.1"},"#,
                r#"{"version":"6","interface":1,"address":"fc00::3/64","gateway":"fc00::1"}],"#,
                r#""routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1"},{"dst":"10.1.0.0/16"}],"dns":{}}"#
            )
        );
    }

    #[test]
    fn version_0_2_0_has_one_address_for_each_family_with_its_routes() {
        assert_eq!(
            document(Version::V0_2_0),
            concat!(
                r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/24","gateway":"10.1.2.1","#,
                r#""routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1"},{"dst":"10.1.0.0/16"}]},"#,
                r#""ip6":{"ip":"fc00::3/64","gateway":"fc00::1"},"dns":{}}"#
            )
        );
        let failure = Attachment::default().document(Version::V0_1_0).unwrap_err();
        assert_eq!(failure.code, Code::Version);
    }

    #[test]
    fn what_an_add_printed_reads_back() {
        for version in [Version::V1_0_0, Version::V1_1_0] {
            let printed = sample().document(version).unwrap();
            assert_eq!(Attachment::parse(&printed).unwrap(), sample());
        }
        let older = Attachment::parse(&sample().document(Version::V0_4_0).unwrap()).unwrap();
        assert_eq!(older.ips, sample().ips);
        let oldest = Attachment::parse(&sample().document(Version::V0_2_0).unwrap()).unwrap();
        let ips = sample().ips.into_iter().map(|ip| Address { interface: None, ..ip });
        assert_eq!((oldest.ips, oldest.routes.len()), (ips.collect(), 2));
    }
}
