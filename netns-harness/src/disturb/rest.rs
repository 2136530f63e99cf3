//! A net at rest, and what harm to it comes to.

use std::collections::VecDeque;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnetwork::IpNetwork;

use super::list::{Disturbance, LIST, UNDERLAY};
use super::notices::{Heard, Notices};
use super::picture::Picture;
use super::site::{Site, nobody};
use crate::flannel::{Backend, SUBNET_ENV};
use crate::process::Program;
use crate::topology::{Family, Net, UPLINK, eventually};

/// Far below the half minute of an audit: only a notification can explain a repair within this. On a machine whose load is
/// ten times its processors the kernel alone takes three seconds to delete a link.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The same for what other hosts have to follow. A host that was itself renumbered before hears of it only when it notices that
/// its connection to the store is half open.
const FOLLOWED: Duration = Duration::from_secs(20);

/// How long the kernel must say nothing before the state is looked at: looking costs a CPU that the daemon may need.
const QUIET: Duration = Duration::from_millis(4);

/// A daemon may take for a fight what is undone again and again: of one kind of object a host and family no more than so many …
const MOST: usize = 4;
/// … in so long.
const SPAN: Duration = Duration::from_secs(10);

/// A net at rest: what each of its hosts looks like so, with some things on it that are nobody's business.
#[derive(Debug)]
pub struct Rest<'a> {
    net: &'a mut Net,
    backend: Backend,
    family: Family,
    pictures: Vec<Picture>,
    notices: Vec<Notices>,
    done: VecDeque<Done>,
}

/// One disturbance done, and to which kind of object.
#[derive(Debug)]
struct Done {
    at: Instant,
    host: usize,
    family: Family,
    kind: &'static str,
}

impl<'a> Rest<'a> {
    /// Plants foreign objects on every host, and looks at all.
    pub fn new(net: &'a mut Net, backend: Backend, family: Family) -> Result<Self> {
        let notices = net.hosts().iter().map(Notices::listen).collect::<Result<_>>()?;
        let mut rest = Self { net, backend, family, pictures: Vec::new(), notices, done: VecDeque::new() };
        for host in 0..rest.net.hosts().len() {
            rest.run(host, "ip link add vx9 type vxlan id 9 dstport 4789")?;
            rest.restore(host)?;
        }
        // What was planted is looked at by the daemons, too.
        rest.wait_for_quiet(&rest.everywhere(), 5 * QUIET);
        rest.pictures = rest.net.hosts().iter().map(Picture::of).collect::<Result<_>>()?;
        Ok(rest)
    }

    /// What the words of disturbances mean there; `peer` counts the host's routes.
    pub fn site(&self, host: usize, family: Family, peer: usize) -> Result<Site> {
        Site::see(self.net.host(host), host, self.backend, family, peer)
    }

    /// The disturbances that can be done here, each with its family; what is the same for all families only once.
    pub fn choices(&self) -> Result<Vec<(&'static Disturbance, Family)>> {
        let mut all = Vec::new();
        for (n, family) in self.family.each().iter().enumerate() {
            let site = self.site(0, *family, 0)?;
            let fit = LIST.iter().filter(|it| it.fits(&site) && (n == 0 || !it.is_host_wide()));
            all.extend(fit.map(|it| (it, *family)));
        }
        Ok(all)
    }

    /// Does it, and waits until every host concerned looks as before; the time from the harm's end to the kernel's last
    /// word on the repair. What is asked for by many disturbances at once has to wait; see `MOST`.
    ///
    /// # Errors
    /// Names the disturbance and what is still different after [`PATIENCE`].
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
            // What the first of them made.
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

    /// Every host looks as it did at first.
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
            // What is done to the underlay may concern every kind.
            let kinds = here().map(|it| it.kind).chain([kind]).filter(|it| kind == UNDERLAY || *it == kind);
            let busy = |kind| here().filter(|it| it.kind == kind || it.kind == UNDERLAY).count();
            if kinds.map(busy).max().unwrap_or_default() < MOST {
                return self.done.push_back(Done { at: Instant::now(), host, family, kind });
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns when the last step began and ended. What is heard is what was said since it began.
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

    /// One command, or several of `ip` with the same options in one batch, so that nobody comes between them.
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

    /// Puts back what goes with the underlay and is not ours.
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

    /// When subnet.env was seen to be as before.
    fn file_is_back(&self, host: usize, before: &[u8]) -> Result<Instant> {
        let file = self.net.host(host).path(SUBNET_ENV);
        let same = || fs::read(&file).is_ok_and(|now| now == before);
        eventually(PATIENCE, || if same() { Ok(()) } else { bail!("subnet.env is not as before") })?;
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
        let last = || hosts.iter().filter_map(|host| self.notices[*host].heard().last).max().unwrap_or(start);
        while last().max(start).elapsed() < span && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// From the first thing the kernel said of the last step, or that step's end when it said nothing, to the last.
    fn kernel_was_done(&self, hosts: &[usize], ended: Instant) -> Duration {
        let heard: Vec<Heard> = hosts.iter().map(|host| self.notices[*host].heard()).collect();
        let first = heard.iter().filter_map(|it| it.first).min().map_or(ended, |first| first.min(ended));
        heard
            .iter()
            .filter_map(|it| it.last)
            .max()
            .map_or(Duration::ZERO, |last| last.saturating_duration_since(first))
    }
}

/// On every host: addresses of the host, a default route, and what only looks like ours: inside the network
/// but smaller than a lease, a lease's size but nobody's, another table, a neighbour on the underlay.
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

/// Lines, with consecutive ones of `ip` and the same options as one step.
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

/// How long repairs of one kind took.
#[derive(Debug, Clone)]
pub struct Times {
    /// The disturbance's name.
    pub name: &'static str,
    /// What it was done to.
    pub family: Family,
    /// One figure each time.
    pub all: Vec<Duration>,
}

impl Times {
    /// The one in the middle.
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
