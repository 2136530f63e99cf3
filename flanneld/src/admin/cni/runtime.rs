//! Where runtimes look for plugins and configurations.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

/// A runtime whose folders we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Runtime {
    /// containerd, as kubeadm and most distributions of Kubernetes set it up.
    Kubernetes,
    Crio,
    Nomad,
    Podman,
    K3s,
}

/// The folders of a runtime.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Folders {
    pub(super) bin: PathBuf,
    pub(super) conf: PathBuf,
}

impl Runtime {
    /// Its folders on the host below `root`.
    pub(super) fn folders(self, root: &Path) -> Folders {
        let (bin, conf) = match self {
            Self::Kubernetes | Self::Crio | Self::Podman => ("opt/cni/bin", "etc/cni/net.d"),
            Self::Nomad => ("opt/cni/bin", "opt/cni/config"),
            Self::K3s => (k3s_programs(root), "var/lib/rancher/k3s/agent/etc/cni/net.d"),
        };
        Folders { bin: root.join(bin), conf: root.join(conf) }
    }

    /// Whether it uses the configuration whose file name is the first; the others ask for a network by its name.
    pub(super) fn takes_first(self) -> bool {
        matches!(self, Self::Kubernetes | Self::Crio | Self::K3s)
    }
}

/// k3s replaces the folder of its own programs with every release; later ones have a second one for others'.
fn k3s_programs(root: &Path) -> &'static str {
    let lasting = "var/lib/rancher/k3s/data/cni";
    if root.join(lasting).is_dir() { lasting } else { "var/lib/rancher/k3s/data/current/bin" }
}
