//! Pods: namespaces that a CNI plugin connects, with the calls of a container runtime.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::host::Host;
use crate::namespace::Namespace;
use crate::probe;
use crate::process::Program;
use crate::topology::Family;

/// A CNI plugin with its configuration.
#[derive(Debug, Clone)]
pub struct Cni {
    /// The plugin's program.
    pub plugin: PathBuf,
    /// Where the plugin finds other plugins (CNI_PATH).
    pub path: OsString,
    /// The network configuration, given on standard input.
    pub conf: Value,
}

impl Cni {
    /// The program `plugin`, called as `flannel` with the configuration of flannel's own manifest. Other
    /// plugins are in the same folder.
    pub fn flannel(plugin: impl Into<PathBuf>) -> Self {
        let plugin = plugin.into();
        let path = plugin.parent().map(|dir| dir.as_os_str().to_owned()).unwrap_or_default();
        let delegate = json!({"isDefaultGateway": true, "hairpinMode": true});
        let conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "delegate": delegate});
        Self { plugin, path, conf }
    }

    /// One call: `command` is ADD, DEL, CHECK or VERSION.
    pub fn call(&self, command: &str, container: &str, netns: &str) -> Program {
        Program::new(&self.plugin)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.path)
            .stdin(self.conf.to_string())
    }
}

/// A container's network namespace, mounted on its host under /run/netns, that no plugin has connected yet.
#[derive(Debug)]
pub struct Sandbox {
    host: Host,
    space: Namespace,
    path: PathBuf,
}

impl Sandbox {
    /// Makes one with its loopback up. `name` is unique on its host.
    pub fn new(host: &Host, name: &str) -> Result<Self> {
        let space = Namespace::create(host.space().run_dir(), &format!("{}-{name}", host.name()))?;
        let path = host.show_namespace(&space)?;
        Ok(Self { host: host.clone(), space, path })
    }

    /// Its path on its host.
    pub fn path(&self) -> std::borrow::Cow<'_, str> {
        self.path.to_string_lossy()
    }

    /// The namespace itself.
    pub fn space(&self) -> &Namespace {
        &self.space
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.host.hide_namespace(&self.path);
    }
}

/// A pod on a host. Dropping it without [`Pod::delete`] is like the death of its node: the plugin is not
/// called.
#[derive(Debug)]
pub struct Pod {
    sandbox: Sandbox,
    cni: Cni,
    addresses: Vec<IpNetwork>,
    result: Value,
}

impl Pod {
    /// Makes a namespace and calls the plugin's ADD. `name` is the container's id, unique on its host.
    pub fn add(host: &Host, name: &str, cni: &Cni) -> Result<Self> {
        let sandbox = Sandbox::new(host, name)?;
        let mut pod = Self { sandbox, cni: cni.clone(), addresses: Vec::new(), result: Value::Null };
        let answer = host.output(&pod.call("ADD"))?;
        pod.result = serde_json::from_slice(&answer.stdout).unwrap_or(Value::Null);
        if !answer.status.success() {
            let message = String::from_utf8_lossy(&answer.stdout).into_owned()
                + &String::from_utf8_lossy(&answer.stderr);
            bail!("CNI ADD of {}: {}: {}", pod.name(), answer.status, message.trim());
        }
        pod.addresses =
            addresses(&pod.result).with_context(|| format!("CNI ADD of {}: {}", pod.name(), pod.result))?;
        Ok(pod)
    }

    /// Calls the plugin's DEL, and ends the namespace.
    pub fn delete(self) -> Result<()> {
        self.host().exec(&self.call("DEL")).map(drop)
    }

    /// Calls the plugin for this pod.
    pub fn call(&self, command: &str) -> Program {
        self.cni.call(command, self.name(), &self.path())
    }

    /// The path of its network namespace on its host.
    pub fn path(&self) -> std::borrow::Cow<'_, str> {
        self.sandbox.path()
    }

    /// Host and container id, joined by a hyphen.
    pub fn name(&self) -> &str {
        self.space().name()
    }

    /// The host it is on.
    pub fn host(&self) -> &Host {
        &self.sandbox.host
    }

    /// Its network namespace.
    pub fn space(&self) -> &Namespace {
        self.sandbox.space()
    }

    /// The result of ADD.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// Its addresses, with the prefix length of the host's subnet.
    pub fn addresses(&self) -> &[IpNetwork] {
        &self.addresses
    }

    /// Its first address of a family.
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let fits = |address: &&IpNetwork| family.has(address.ip());
        let found = self.addresses.iter().find(fits).map(IpNetwork::ip);
        found.with_context(|| format!("{} has no address of family {family}", self.name()))
    }

    /// Pings another pod's first address of a family.
    pub fn ping(&self, other: &Self, family: Family, patience: Duration) -> Result<Duration> {
        probe::ping(self.space(), other.address(family)?, patience)
    }
}

fn addresses(result: &Value) -> Option<Vec<IpNetwork>> {
    let ips = result.get("ips")?.as_array()?;
    ips.iter().map(|ip| ip.get("address")?.as_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_from_the_plugins_answer() {
        let result =
            json!({"cniVersion": "1.0.0", "ips": [{"address": "10.42.1.2/24"}, {"address": "fd42::2/64"}]});
        let found = addresses(&result).unwrap();
        assert_eq!(found, ["10.42.1.2/24".parse().unwrap(), "fd42::2/64".parse().unwrap()]);
        assert_eq!(addresses(&json!({"code": 11, "msg": "no"})), None);
    }
}
