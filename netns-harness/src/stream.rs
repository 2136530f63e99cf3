//! A stream of numbered UDP packets: how many were lost, and how long nothing arrived.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};

use crate::namespace::Namespace;

/// Bytes that may wait for the receiver.
const ROOM: usize = 4 << 20;

/// How long the receiver waits for late packets after the sender has stopped.
const STRAGGLERS: Duration = Duration::from_millis(100);

/// Traffic between two namespaces.
///
/// ```text
///   sender ──▶ #0 #1 #2 ── … #41 #42 #43 ──▶ receiver        one packet an interval, e.g. 250 µs
///                        ╰─ gap ─╯
/// ```
#[derive(Debug)]
pub struct Stream {
    stop: StopOnDrop,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<io::Result<Arrivals>>,
    interval: Duration,
}

/// Ends both threads, also when the stream is dropped without a report.
#[derive(Debug)]
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.now();
    }
}

#[derive(Debug, Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_due(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The result of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Packets that were sent, or that the kernel refused to send.
    pub sent: u64,
    /// Packets that arrived, each counted once.
    pub received: u64,
    /// Packets that arrived more than once.
    pub duplicates: u64,
    /// The longest time without an arrival, between the first and the last packet sent, minus one interval. A
    /// busy machine shows some milliseconds without any loss, so the figure means little when no packet was
    /// lost.
    pub longest_gap: Duration,
}

impl Report {
    /// Packets that never arrived.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// How long the path was cut: the longest gap, or zero when no packet was lost.
    pub fn outage(&self) -> Duration {
        if self.lost() == 0 { Duration::ZERO } else { self.longest_gap }
    }
}

/// The result of each packet of a stream.
#[derive(Debug, Clone)]
pub struct Record {
    /// The totals.
    pub report: Report,
    seen: Vec<bool>,
}

impl Record {
    /// How many packets from number `from` to the one before `to` never arrived.
    pub fn lost(&self, from: u64, to: u64) -> u64 {
        let arrived = |number: &u64| usize::try_from(*number).is_ok_and(|n| self.seen.get(n) == Some(&true));
        (from..to).filter(|number| !arrived(number)).count() as u64
    }
}

impl Stream {
    /// Starts sending one small packet per `interval` from one namespace to the address `at` of another.
    pub fn start(from: &Namespace, to: &Namespace, at: IpAddr, interval: Duration) -> Result<Self> {
        let inbox = to
            .run(|| UdpSocket::bind(SocketAddr::new(at, 0)))?
            .with_context(|| format!("cannot listen on {at} in {}", to.name()))?;
        // Room for a second of packets, in case the receiver has to wait for a CPU: an overflow here is not a
        // loss on the way. Only the machine's own root may exceed the limit.
        let _ = setsockopt(&inbox, RcvBufForce, &ROOM).or_else(|_| setsockopt(&inbox, RcvBuf, &ROOM));
        let target = inbox.local_addr()?;
        let any = if at.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let outbox = from.run(|| UdpSocket::bind(any))??;
        let (stop, sent) = (Stop::default(), Arc::new(AtomicU64::new(0)));
        let start = Instant::now();
        let (stopping, sending) = (stop.clone(), sent.clone());
        let receiver = thread::spawn(move || receive(&inbox, &stopping, start));
        let stopping = stop.clone();
        let sender = thread::spawn(move || send(&outbox, target, interval, &stopping, &sending));
        Ok(Self { stop: StopOnDrop(stop), sent, sender, receiver, interval })
    }

    /// Packets sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops, waits for late packets, and reports.
    pub fn stop(self) -> Result<Report> {
        self.finish().map(|record| record.report)
    }

    /// The same, with the result of each packet.
    pub fn finish(self) -> Result<Record> {
        self.stop.0.now();
        self.sender.join().map_err(|_| anyhow!("the sender failed"))?;
        let mut arrivals = self.receiver.join().map_err(|_| anyhow!("the receiver failed"))??;
        let seen = std::mem::take(&mut arrivals.seen);
        Ok(Record { seen, report: arrivals.report(self.sent.load(Ordering::Relaxed), self.interval) })
    }
}

fn send(socket: &UdpSocket, to: SocketAddr, interval: Duration, stop: &Stop, sent: &AtomicU64) {
    let mut next = Instant::now();
    while !stop.is_due() {
        let number = sent.fetch_add(1, Ordering::Relaxed);
        // A refusal to send (no route) counts as a loss.
        let _ = socket.send_to(&number.to_be_bytes(), to);
        next += interval;
        // After a pause of the machine the missed packets are not sent: a burst could overflow a queue, which
        // would look like a loss on the way.
        let now = Instant::now();
        next = next.max(now);
        thread::sleep(next - now);
    }
}

fn receive(socket: &UdpSocket, stop: &Stop, start: Instant) -> io::Result<Arrivals> {
    socket.set_read_timeout(Some(STRAGGLERS))?;
    let mut arrivals = Arrivals::default();
    let mut buffer = [0; 64];
    loop {
        match socket.recv(&mut buffer) {
            Ok(8) => {
                let number = buffer[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
                arrivals.add(number, start.elapsed());
            }
            Ok(_) => {}
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if stop.is_due() => {
                arrivals.end = start.elapsed() - STRAGGLERS;
                return Ok(arrivals);
            }
            Err(_) => {}
        }
    }
}

#[derive(Debug, Default)]
struct Arrivals {
    /// One bit a packet, by number.
    seen: Vec<bool>,
    received: u64,
    duplicates: u64,
    last: Duration,
    longest: Duration,
    end: Duration,
}

impl Arrivals {
    fn add(&mut self, number: u64, at: Duration) {
        self.longest = self.longest.max(at.saturating_sub(self.last));
        self.last = at;
        let Ok(number) = usize::try_from(number) else { return };
        if self.seen.len() <= number {
            self.seen.resize(number + 1, false);
        }
        if self.seen[number] {
            self.duplicates += 1;
        } else {
            self.seen[number] = true;
            self.received += 1;
        }
    }

    /// If the path never recovers, it is cut until the end.
    fn report(self, sent: u64, interval: Duration) -> Report {
        let longest = self.longest.max(self.end.saturating_sub(self.last));
        let longest_gap = longest.saturating_sub(interval);
        Report { sent, received: self.received, duplicates: self.duplicates, longest_gap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_gap_is_the_longest_silence_less_one_interval() {
        let mut arrivals = Arrivals { end: 30 * MS, ..Arrivals::default() };
        for (number, at) in [(0, 0), (1, 1), (2, 2), (20, 20), (21, 21), (21, 21), (22, 22)] {
            arrivals.add(number, at * MS);
        }
        let report = arrivals.report(23, MS);
        assert_eq!(report, Report { sent: 23, received: 6, duplicates: 1, longest_gap: 17 * MS });
        assert_eq!((report.lost(), report.outage()), (17, 17 * MS));
    }

    #[test]
    fn a_path_that_never_comes_back_is_cut_until_the_end() {
        let mut arrivals = Arrivals { end: 100 * MS, ..Arrivals::default() };
        arrivals.add(0, MS);
        assert_eq!(arrivals.report(100, MS).outage(), 98 * MS);
    }

    #[test]
    fn a_loss_is_known_by_the_packets_number() {
        let mut arrivals = Arrivals::default();
        for number in [0, 1, 4] {
            arrivals.add(number, MS);
        }
        let record = Record { seen: arrivals.seen.clone(), report: arrivals.report(6, MS) };
        assert_eq!([record.lost(0, 2), record.lost(1, 4), record.lost(4, 6)], [0, 2, 1]);
    }

    #[test]
    fn a_silence_without_loss_is_no_outage() {
        let mut arrivals = Arrivals { end: 9 * MS, ..Arrivals::default() };
        arrivals.add(0, MS);
        arrivals.add(1, 9 * MS);
        assert_eq!(arrivals.report(2, MS).outage(), Duration::ZERO);
    }
}
