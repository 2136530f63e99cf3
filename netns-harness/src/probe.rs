//! Measurements from inside a namespace: does an address answer, and how fast.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::namespace::Namespace;

/// Sends one echo request and waits for the answer. An error means that no answer came within `patience`.
pub fn ping(from: &Namespace, to: IpAddr, patience: Duration) -> Result<Duration> {
    ping_sized(from, to, 16, patience)
}

/// The same with `payload` bytes after the ICMP header, so the packet has 28 (IPv4) or 48 (IPv6) bytes more.
/// IPv4 packets may be fragmented on the way.
pub fn ping_sized(from: &Namespace, to: IpAddr, payload: usize, patience: Duration) -> Result<Duration> {
    let echo = Echo::open(from, to, payload)?;
    let start = Instant::now();
    if let Err(error) = echo.send(0) {
        bail!("{} cannot send to {to}: {error}", from.name());
    }
    match echo.answer_before(start + patience)? {
        true => Ok(start.elapsed()),
        false => bail!("{} has no answer from {to} after {patience:?}", from.name()),
    }
}

/// Sends an echo request every millisecond until the first answer, and returns how long that took.
pub fn ping_until(from: &Namespace, to: IpAddr, patience: Duration) -> Result<Duration> {
    let echo = Echo::open(from, to, 16)?;
    let start = Instant::now();
    for sequence in 0.. {
        if start.elapsed() > patience {
            break;
        }
        // Without a route the send itself fails; a later send may succeed.
        let _ = echo.send(sequence);
        if echo.answer_before(Instant::now() + Duration::from_millis(1))? {
            return Ok(start.elapsed());
        }
    }
    bail!("{} has no answer from {to} after {patience:?}", from.name())
}

/// A raw socket for one peer. A new namespace allows ping sockets to no group, so the socket is raw. It stays
/// in its namespace, so any thread may use it.
struct Echo {
    socket: UdpSocket,
    to: SocketAddr,
    id: u16,
    payload: usize,
}

impl Echo {
    fn open(from: &Namespace, to: IpAddr, payload: usize) -> Result<Self> {
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let socket = from
            .run(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol))?
            .with_context(|| format!("cannot open a raw socket in {}", from.name()))?;
        // This identifier distinguishes parallel pings to one address: the descriptor's number differs.
        let id = u16::try_from(std::os::fd::AsRawFd::as_raw_fd(&socket) & 0xffff)?;
        Ok(Self { socket: UdpSocket::from(socket), to: SocketAddr::new(to, 0), id, payload })
    }

    fn send(&self, sequence: u16) -> io::Result<usize> {
        let kind = if self.to.is_ipv6() { 128 } else { 8 };
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend(self.id.to_be_bytes());
        packet.extend(sequence.to_be_bytes());
        packet.resize(8 + self.payload, 0x5e);
        // For ICMPv6 the kernel writes the checksum, which covers addresses that we do not know.
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
        self.socket.send_to(&packet, self.to)
    }

    fn answer_before(&self, end: Instant) -> Result<bool> {
        let mut buffer = vec![0; 65_536];
        loop {
            // A socket's own timeout counts in ticks of up to 10 ms; the timeout of poll is exact.
            let left = end.saturating_duration_since(Instant::now());
            let mut asked = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if left.is_zero() || poll(&mut asked, PollTimeout::try_from(left)?)? == 0 {
                return Ok(false);
            }
            let (length, from) = self.socket.recv_from(&mut buffer).context("cannot receive echo replies")?;
            if from.ip() == self.to.ip() && self.is_answer(&buffer[..length]) {
                return Ok(true);
            }
        }
    }

    /// IPv4 raw sockets deliver the IP header too; its length is in its first byte.
    fn is_answer(&self, packet: &[u8]) -> bool {
        let (kind, header) = match self.to {
            SocketAddr::V4(_) => (0, usize::from(packet.first().copied().unwrap_or_default() & 15) * 4),
            SocketAddr::V6(_) => (129, 0),
        };
        let id = self.id.to_be_bytes();
        packet
            .get(header..)
            .is_some_and(|icmp| icmp.first() == Some(&kind) && icmp.get(4..6) == Some(&id[..]))
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let add = |sum: u16, pair: &[u8]| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    };
    !bytes.chunks(2).fold(0, add)
}

/// Opens a TCP connection from `from`, and returns how long the handshake took.
pub fn tcp_connect(from: &Namespace, to: SocketAddr, patience: Duration) -> Result<Duration> {
    from.run(|| {
        let start = Instant::now();
        TcpStream::connect_timeout(&to, patience)
            .map(|_| start.elapsed())
            .with_context(|| format!("{} cannot connect to {to}", from.name()))
    })?
}

/// The result of a transfer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throughput {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the first byte to the last.
    pub time: Duration,
}

impl Throughput {
    /// In 10⁹ bits a second, payload only.
    pub fn gbit_per_s(&self) -> f64 {
        let bits = f64::from(u32::try_from(self.bytes >> 10).unwrap_or(u32::MAX)) * 8.192e3;
        bits / self.time.as_secs_f64().max(1e-9) / 1e9
    }
}

/// Sends as much as possible over one TCP connection within `time`, from one namespace to the address `at` of
/// another.
pub fn throughput(from: &Namespace, to: &Namespace, at: IpAddr, time: Duration) -> Result<Throughput> {
    let listener = to
        .run(|| TcpListener::bind(SocketAddr::new(at, 0)))?
        .with_context(|| format!("cannot listen on {at} in {}", to.name()))?;
    let address = listener.local_addr()?;
    let sink = thread::spawn(move || drain(&listener));
    from.run(|| send_for(address, time))
        .and_then(|sent| sent)
        .with_context(|| format!("{} cannot send to {address}", from.name()))?;
    match sink.join() {
        Ok(arrived) => arrived,
        Err(_) => bail!("the receiver in {} failed", to.name()),
    }
}

fn send_for(to: SocketAddr, time: Duration) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let block = vec![0x5e; 256 * 1024];
    let end = Instant::now() + time;
    while Instant::now() < end {
        stream.write_all(&block)?;
    }
    Ok(())
}

fn drain(listener: &TcpListener) -> Result<Throughput> {
    // The sender may never connect; its own limit is shorter.
    listener.set_nonblocking(true)?;
    let end = Instant::now() + Duration::from_secs(6);
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock || Instant::now() > end => {
                return Err(error.into());
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let start = Instant::now();
    let mut block = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        match stream.read(&mut block)? {
            0 => return Ok(Throughput { bytes, time: start.elapsed() }),
            length => bytes += length as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 1071 section 3 sums these bytes to 0xddf2.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }

    #[test]
    fn a_gigabyte_in_a_second_is_eight_gigabits() {
        let throughput = Throughput { bytes: 1 << 30, time: Duration::from_secs(1) };
        assert!((throughput.gbit_per_s() - 8.59).abs() < 0.01);
    }
}
