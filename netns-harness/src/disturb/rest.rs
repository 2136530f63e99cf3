//! A net at rest, and what follows from a disturbance of it.

use std::collections::VecDeque;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnetwork::IpNetwork;

use super::list::{Disturbance, LIST, UNDERLAY};
use super::notices::{Notices, Received};
use super::picture::Picture;
use super::site::{Site, nobody};
use crate::flannel::{Backend, SUBNET_ENV};
use crate::process::Program;
use crate::topology::{Family, Net, UPLINK, eventually};

/// Far below the half minute of an audit: only a notification can explain a repair within this time. On a
/// machine whose load is ten times its processors, the kernel alone takes three seconds to delete a link.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The same for changes that other hosts have to follow. A host that was renumbered itself receives the
/// change only after it has noticed that its connection to the store is half open.
const FOLLOWED: Duration = Duration::from_secs(20);

/// The time without a notification before the state is read: reading takes a CPU that the daemon may need.
const QUIET: Duration = Duration::from_millis(4);

/// A daemon may treat repeated changes as contended. So one kind of object, per host and family, is disturbed
/// at most this often …
const MOST: usize = 4;
/// … within this time.
const SPAN: Duration = Duration::from_secs(10);

/// A net at rest: the picture of each host, with some foreign objects on it.
#[derive(Debug)]
pub struct Rest<'a> {
    net: &'a mut Net,
    backend: Backend,
    family: Family,
    pictures: Vec<Picture>,
    notices: Vec<Notices>,
    done: VecDeque<Done>,
}

/// One disturbance that was done, and the kind of object.
#[derive(Debug)]
struct Done {
    at: Instant,
    host: usize,
    family: Family,
    kind: &'static str,
}

impl<'a> Rest<'a> {
    /// Puts foreign objects on every host, and takes a picture of each host.
    pub fn new(net: &'a mut Net, backend: Backend, family: Family) -> Result<Self> {
        let notices = net.hosts().iter().map(Notices::listen).collect::<Result<_>>()?;
        let mut rest = Self { net, backend, family, pictures: Vec::new(), notices, done: VecDeque::new() };
        for host in 0..rest.net.hosts().len() {
            rest.run(host, "ip link add vx9 type vxlan id 9 dstport 4789")?;
            rest.restore(host)?;
        }
        // The daemons read the foreign objects too.
        rest.wait_for_quiet(&rest.everywhere(), 5 * QUIET);
        rest.pictures = rest.net.hosts().iter().map(Picture::of).collect::<Result<_>>()?;
        Ok(rest)
    }

    /// The values of the words at this site; `peer` selects one of the host's routes.
    pub fn site(&self, host: usize, family: Family, peer: usize) -> Result<Site> {
        Site::see(self.net.host(host), host, self.backend, family, peer)
    }

    /// The disturbances that can be done here, each with its family. A host-wide one is listed once.
    pub fn choices(&self) -> Result<Vec<(&'static Disturbance, Family)>> {
        let mut all = Vec::new();
        for (n, family) in self.family.each().iter().enumerate() {
            let site = self.site(0, *family, 0)?;
            let fit = LIST.iter().filter(|it| it.fits(&site) && (n == 0 || !it.is_host_wide()));
            all.extend(fit.map(|it| (it, *family)));
        }
        Ok(all)
    }

    /// Does it, and waits until every affected host looks as before. Returns the time from the end of the
    /// disturbance to the kernel's last notification of the repair. Too many disturbances of one kind have to
    /// wait; see `MOST`.
    ///
    /// # Errors
    /// Names the disturbance and the remaining differences after [`PATIENCE`].
    pub fn harm(&mut self, what: &Disturbance, site: &Site) -> Result<Duration> {
        self.take_turn(what, site);
        let named = || format!("{} ({}) on {}", what.name, site.family(), self.net.host(site.host()).name());
        let (named, before) = (named(), fs::read(self.net.host(site.host()).path(SUBNET_ENV))?);
        let mut tries = 0;
        let (began, ended) = loop {
            // A daemon may be faster than two commands.
            match self.perform(what, site) {
                Ok(span) => break span,
                Err(error) if tries == 5 => return Err(error.context(named)),
                Err(_) => tries += 1,
            }
            // The notifications of the first commands.
            if what.how.iter().any(|line| line.contains(" stray ")) {
                let _ = self.run(site.host(), "ip link delete stray");
            }
        };
        let file = self.file_is_back(site.host(), &before).context(named.clone())?;
        let (hosts, patience) = match what.spreads() {
            true => (self.everywhere(), FOLLOWED),
            false => (vec![site.host()], PATIENCE),
        };
        self.looks_as_before(&hosts, patience).context(named)?;
        Ok(if what.is_of_file() { file.duration_since(began) } else { self.kernel_was_done(&hosts, ended) })
    }

    /// Checks that every host looks as it did at first.
    pub fn check(&self) -> Result<()> {
        self.looks_as_before(&self.everywhere(), PATIENCE)
    }

    /// The net.
    pub fn net(&self) -> &Net {
        self.net
    }

    fn everywhere(&self) -> Vec<usize> {
        (0..self.net.hosts().len()).collect()
    }

    fn take_turn(&mut self, what: &Disturbance, site: &Site) {
        let (host, family, kind) = (site.host(), site.family(), what.kind());
        loop {
            self.done.retain(|it| it.at.elapsed() < SPAN);
            let here = || self.done.iter().filter(|it| it.host == host && it.family == family);
            // A disturbance of the underlay may concern every kind.
            let kinds = here().map(|it| it.kind).chain([kind]).filter(|it| kind == UNDERLAY || *it == kind);
            let busy = |kind| here().filter(|it| it.kind == kind || it.kind == UNDERLAY).count();
            if kinds.map(busy).max().unwrap_or_default() < MOST {
                return self.done.push_back(Done { at: Instant::now(), host, family, kind });
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns when the last step began and ended. Only notifications since its begin are kept.
    fn perform(&mut self, what: &Disturbance, site: &Site) -> Result<(Instant, Instant)> {
        let mut began = Instant::now();
        for step in steps(what.how.iter().map(|line| site.line(line))) {
            self.notices.iter().for_each(Notices::mark);
            began = Instant::now();
            self.step(&step, site)?;
        }
        Ok((began, Instant::now()))
    }

    fn step(&mut self, step: &str, site: &Site) -> Result<()> {
        let host = site.host();
        match step.split_whitespace().collect::<Vec<_>>()[..] {
            ["cable", "cut"] => self.net.cut(host),
            ["cable", "mend"] => self.net.mend(host),
            ["cable", "new"] => self.net.rewire(host),
            ["restore"] => self.restore(host),
            ["renumber", old, new] => self.renumber(host, old.parse()?, new.parse()?),
            _ => self.run(host, step),
        }
    }

    /// One command, or several of `ip` with the same options in one batch, so that the daemon does not act
    /// between them.
    fn run(&self, host: usize, step: &str) -> Result<()> {
        let lines: Vec<&str> = step.lines().collect();
        let words: Vec<&str> = lines[0].split_whitespace().collect();
        let program = match lines.len() {
            1 => Program::new(words[0]).args(words[1..].iter().copied()),
            _ => {
                let options =
                    words[1..].iter().copied().take_while(|word| word.starts_with('-')).collect::<Vec<_>>();
                let batch = lines.iter().map(|line| line.split_whitespace().skip(1 + options.len()));
                let batch: Vec<String> = batch.map(|words| words.collect::<Vec<_>>().join(" ")).collect();
                Program::new("ip").args(options).args(["-batch", "-"]).stdin(batch.join("\n") + "\n")
            }
        };
        self.net.host(host).exec(&program).map(drop).with_context(|| step.to_owned())
    }

    fn renumber(&mut self, number: usize, old: IpNetwork, new: IpNetwork) -> Result<()> {
        let host = self.net.host(number);
        host.delete_address(UPLINK, old)?;
        host.add_address(UPLINK, new)?;
        let [old, new] = [old, new].map(|it| it.ip().to_string());
        self.pictures = self.pictures.iter().map(|it| it.readdressed(&old, &new)).collect();
        Ok(())
    }

    /// Puts back what was lost with the underlay and is not ours.
    fn restore(&self, number: usize) -> Result<()> {
        let host = self.net.host(number);
        for own in host.addresses() {
            let family = if own.is_ipv6() { Family::V6 } else { Family::V4 };
            let lines = if own.is_ipv6() { &FOREIGN_V6[..] } else { &FOREIGN_V4 };
            let (small, whole) = (nobody(host, family, 252)?, nobody(host, family, 253)?);
            let lines = lines.iter().map(|line| {
                let own = line.replace("{own}", &own.to_string()).replace("{uplink}", UPLINK);
                own.replace("{small}", &small).replace("{whole}", &whole)
            });
            self.run(number, &lines.collect::<Vec<_>>().join("\n"))?;
        }
        self.run(number, "nft add table inet mine ; add chain inet mine input")
    }

    /// When subnet.env was found to be as before.
    fn file_is_back(&self, host: usize, before: &[u8]) -> Result<Instant> {
        let file = self.net.host(host).path(SUBNET_ENV);
        let same = || fs::read(&file).is_ok_and(|now| now == before);
        eventually(PATIENCE, || if same() { Ok(()) } else { bail!("subnet.env differs from before") })?;
        Ok(Instant::now())
    }

    fn looks_as_before(&self, hosts: &[usize], patience: Duration) -> Result<()> {
        let look = || {
            self.wait_for_quiet(hosts, QUIET);
            for host in hosts {
                let now = Picture::of(self.net.host(*host))?;
                let different = self.pictures[*host].differences(&now);
                ensure!(different.is_empty(), "{}:\n{}", self.net.host(*host).name(), different.join("\n"));
            }
            Ok(())
        };
        eventually(patience, look).map(drop)
    }

    fn wait_for_quiet(&self, hosts: &[usize], span: Duration) {
        let end = Instant::now() + 50 * QUIET;
        let start = Instant::now();
        let last =
            || hosts.iter().filter_map(|host| self.notices[*host].received().last).max().unwrap_or(start);
        while last().max(start).elapsed() < span && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// From the first notification after the last step began (or that step's end, without any) to the last
    /// notification.
    fn kernel_was_done(&self, hosts: &[usize], ended: Instant) -> Duration {
        let received: Vec<Received> = hosts.iter().map(|host| self.notices[*host].received()).collect();
        let first = received.iter().filter_map(|it| it.first).min().map_or(ended, |first| first.min(ended));
        received
            .iter()
            .filter_map(|it| it.last)
            .max()
            .map_or(Duration::ZERO, |last| last.saturating_duration_since(first))
    }
}

/// Objects for every host: addresses of the host, a default route, and objects that only look like ours: a
/// route inside the network smaller than a lease, one with a lease's size for no lease, one in another table,
/// a neighbour on the underlay.
const FOREIGN_V4: [&str; 5] = [
    "ip route replace default dev {uplink} proto static scope link",
    "ip route replace {small}/28 via 172.30.250.99 dev {uplink} onlink",
    "ip route replace {whole}/24 via 172.30.250.99 dev {uplink} onlink proto static",
    "ip route replace {small}/24 dev {uplink} table 77",
    "ip neigh replace 172.30.250.98 lladdr 02:00:00:00:00:98 dev {uplink} nud permanent",
];
const FOREIGN_V6: [&str; 6] = [
    "ip -6 address replace {own} dev {uplink} nodad",
    "ip -6 route replace default dev {uplink} proto static metric 1024",
    "ip -6 route replace {small}/72 via fd30::99 dev {uplink} onlink",
    "ip -6 route replace {whole}/64 via fd30::99 dev {uplink} onlink proto static",
    "ip -6 route replace {small}/64 dev {uplink} table 77",
    "ip -6 neigh replace fd30::98 lladdr 02:00:00:00:00:98 dev {uplink} nud permanent",
];

/// The lines; consecutive lines of `ip` with the same options are one step.
fn steps(lines: impl Iterator<Item = String>) -> Vec<String> {
    let options = |line: &str| -> Option<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let family = words.get(1).filter(|word| word.starts_with('-')).unwrap_or(&"");
        (words[0] == "ip").then(|| (*family).to_owned())
    };
    let mut steps: Vec<String> = Vec::new();
    for line in lines {
        match steps.last_mut() {
            Some(last) if options(&line).is_some() && options(last) == options(&line) => {
                *last += &format!("\n{line}")
            }
            _ => steps.push(line),
        }
    }
    steps
}

/// How long the repairs of one disturbance took.
#[derive(Debug, Clone)]
pub struct Times {
    /// The disturbance's name.
    pub name: &'static str,
    /// The family.
    pub family: Family,
    /// One figure per repetition.
    pub all: Vec<Duration>,
}

impl Times {
    /// The median.
    pub fn median(&self) -> Duration {
        let mut sorted = self.all.clone();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// The longest.
    pub fn worst(&self) -> Duration {
        self.all.iter().max().copied().unwrap_or_default()
    }
}

/// Does every disturbance of `names` (all when empty) `rounds` times, on one host after the other.
pub fn repair_times(
    net: &mut Net,
    backend: Backend,
    family: Family,
    names: &[&str],
    rounds: usize,
) -> Result<Vec<Times>> {
    let mut rest = Rest::new(net, backend, family)?;
    let mut choices = rest.choices()?;
    choices.retain(|(it, _)| names.is_empty() || names.contains(&it.name));
    let mut all: Vec<Times> = choices
        .iter()
        .map(|(it, family)| Times { name: it.name, family: *family, all: Vec::new() })
        .collect();
    let hosts = rest.net.hosts().len();
    let mut turn = 0;
    for _ in 0..rounds {
        for ((what, family), times) in choices.iter().zip(&mut all) {
            let site = rest.site(turn % hosts, *family, turn / hosts)?;
            times.all.push(rest.harm(what, &site)?);
            turn += 1;
        }
    }
    rest.check()?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ip_with_the_same_options_are_one_step() {
        let lines = ["ip link set x down", "ip link set x up", "restore", "ip -6 a", "ip -4 b"];
        let steps = steps(lines.into_iter().map(str::to_owned));
        assert_eq!(steps, ["ip link set x down\nip link set x up", "restore", "ip -6 a", "ip -4 b"]);
    }

    #[test]
    fn the_median_is_one_of_the_times() {
        let all = [9, 1, 2].map(Duration::from_millis).to_vec();
        let times = Times { name: "x", family: Family::V4, all };
        assert_eq!((times.median(), times.worst()), (Duration::from_millis(2), Duration::from_millis(9)));
    }
}
