//! VXLAN tunnels: settings in the net-conf, and what a host publishes about its tunnel devices.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Kind;
use crate::format::json::{Fields, RawJson};
use crate::model::lease::BackendAttrs;
use crate::model::net::Family;
use crate::model::netconf::{NetConfError, boolean, integer, mtu};

/// Tunnels over UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VxlanConfig {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port; 0 = the kernel's default, 8472.
    pub port: u16,
    /// MTU of the underlay in bytes, instead of the external interface's.
    pub mtu: Option<u32>,
    /// Group-based policy extension.
    pub gbp: bool,
    /// Whether the device learns addresses from traffic.
    pub learning: bool,
    /// Plain routes to peers on a connected network.
    pub direct_routing: bool,
}

impl VxlanConfig {
    /// Bytes that a tunnel adds: outer IP header (20 or 40), UDP (8), VXLAN (8), inner Ethernet (14).
    pub fn header(family: Family) -> u32 {
        match family {
            Family::V4 => 50,
            Family::V6 => 70,
        }
    }
}

const VNI_MOST: u64 = (1 << 24) - 1;

impl Kind for VxlanConfig {
    const NAME: &'static str = "vxlan";
    const ID: &'static str = "hardware address";
    type Data = VtepMac;

    fn read(fields: &mut Fields, errors: &mut Vec<NetConfError>) -> Self {
        let mut number = |name, most| integer(fields, "Backend.", name, most, errors);
        let vni = number("VNI", VNI_MOST).and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
        let port = number("Port", u64::from(u16::MAX)).and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
        let mtu = mtu(fields, "Backend.", errors);
        let mut flag = |name| boolean(fields, "Backend.", name, errors).unwrap_or(false);
        let (gbp, learning) = (flag("GBP"), flag("Learning"));
        Self { vni, port, mtu, gbp, learning, direct_routing: flag("DirectRouting") }
    }

    /// The VNI is the same for all peers that are admitted, so only the address is kept.
    fn data(&self, json: Option<&RawJson>) -> Result<Option<VtepMac>, String> {
        let Some(json) = json else { return Ok(None) };
        match published(json)? {
            (Some(vni), _) if vni != self.vni => {
                Err(format!("its VNI is {vni}, this network's {}", self.vni))
            }
            // flannel up to 0.13 publishes no VNI: unknown is not wrong.
            (_, mac) => Ok(Some(VtepMac(mac))),
        }
    }

    fn to_json(&self, VtepMac(mac): &VtepMac) -> Option<RawJson> {
        Some(VxlanData { vni: self.vni, mac: *mac }.to_json())
    }

    /// The forwarding table has one destination per hardware address.
    fn id(VtepMac(mac): &VtepMac) -> Option<&[u8]> {
        Some(mac)
    }

    fn overhead(&self, family: Family) -> u32 {
        Self::header(family)
    }

    fn mtu(&self) -> Option<u32> {
        self.mtu
    }

    fn set_mtu(&mut self, mtu: Option<u32>) {
        self.mtu = mtu;
    }
}

/// The hardware address of a peer's tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VtepMac(pub [u8; 6]);

/// What a vxlan host says about one of its tunnel devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VxlanData {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Hardware address of the device.
    pub mac: [u8; 6],
}

impl VxlanData {
    /// The form flannel writes, and needs to find its own address again: this order of keys, no spaces, lower-case hex.
    pub fn to_json(self) -> RawJson {
        let text = format!("{{\"VNI\":{},\"VtepMAC\":\"{}\"}}", self.vni, Mac(self.mac));
        // Digits, hex and colons: nothing to escape, so the text is JSON.
        RawJson::trusted(text)
    }

    /// Reads what a peer published. A missing VNI is 0, as in Go. The error says what is wrong.
    pub fn from_json(json: &RawJson) -> Result<Self, String> {
        let (vni, mac) = published(json)?;
        Ok(Self { vni: vni.unwrap_or(0), mac })
    }
}

/// The VNI, where there is one, and the hardware address.
fn published(json: &RawJson) -> Result<(Option<u32>, [u8; 6]), String> {
    let mut fields: Fields = serde_json::from_str(json.as_str())
        .map_err(|_| "its backend data is not a JSON object".to_string())?;
    let number = |raw: &RawValue| {
        serde_json::from_str::<Option<u32>>(raw.get()).map_err(|_| "its VNI is not a number")
    };
    let vni = fields.take("VNI").map_or(Ok(None), number)?;
    let text = fields.take("VtepMAC").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    let mac = text.as_deref().and_then(parse_mac).ok_or("its VtepMAC is not a hardware address")?;
    if mac == [0; 6] || mac[0] & 1 == 1 {
        return Err(format!("its VtepMAC {} is not a unicast hardware address", Mac(mac)));
    }
    Ok((vni, mac))
}

impl BackendAttrs {
    /// Attributes of a vxlan host: one device per family that it has.
    pub fn vxlan(v4: Option<VxlanData>, v6: Option<VxlanData>) -> Self {
        let json = |data: Option<VxlanData>| data.map(VxlanData::to_json);
        Self { v4: json(v4), v6: json(v6), ..Self::plain(VxlanConfig::RECORD) }
    }
}

struct Mac([u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vxlan_data_is_written_in_flannels_bytes() {
        let data = VxlanData { vni: 1, mac: [0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44] };
        assert_eq!(data.to_json().as_str(), r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#);
        assert_eq!(VxlanData::from_json(&data.to_json()), Ok(data));
    }

    #[test]
    fn a_peer_without_a_usable_hardware_address_is_said_to_have_none() {
        for bad in [
            "1",
            "{}",
            r#"{"VNI":1}"#,
            r#"{"VNI":1,"VtepMAC":null}"#,
            r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#,
            r#"{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}"#,
            r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#,
            r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f"}"#,
            r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44:55"}"#,
            r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:+4"}"#,
            r#"{"VNI":-1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#,
        ] {
            assert!(VxlanData::from_json(&RawJson::new(bad).unwrap()).is_err(), "{bad} was accepted");
        }
    }
}
