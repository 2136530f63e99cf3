//! Whether a container's port 80 is reached at an address, and whom it sees.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use netns_harness::{Namespace, eventually};

/// What is lost is lost at once on one machine; what is refused says so.
const SOON: Duration = Duration::from_millis(700);
const ANY: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 80);

/// A program that is being started elsewhere in this process holds its socket a moment longer than we do.
fn bound<T: Send>(server: &Namespace, bind: impl Fn() -> std::io::Result<T> + Send + Sync) -> Result<T> {
    let mut socket = None;
    eventually(Duration::from_secs(10), || {
        socket = Some(server.run(&bind)?.context("port 80")?);
        Ok(())
    })?;
    socket.context("port 80")
}

pub(crate) fn tcp(server: &Namespace, client: &Namespace, to: SocketAddr) -> Result<Option<IpAddr>> {
    let listener = bound(server, || TcpListener::bind(ANY))?;
    let Ok(_stream) = client.run(|| TcpStream::connect_timeout(&to, SOON))? else { return Ok(None) };
    // Something else may listen there: who is connected to us is in the queue by now.
    listener.set_nonblocking(true)?;
    Ok(listener.accept().ok().map(|(_, from)| from.ip().to_canonical()))
}

pub(crate) fn udp(server: &Namespace, client: &Namespace, to: SocketAddr) -> Result<Option<IpAddr>> {
    let listener = bound(server, || UdpSocket::bind(ANY))?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = client.run(|| UdpSocket::bind(any))?.context("a port")?;
    // A route may be missing.
    if socket.send_to(b"x", to).is_err() {
        return Ok(None);
    }
    listener.set_nonblocking(true)?;
    let mut byte = [0; 1];
    let mut seen = None;
    let waited = eventually(SOON, || match listener.recv_from(&mut byte) {
        Ok((_, from)) => {
            seen = Some(from.ip().to_canonical());
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => anyhow::bail!("nothing yet"),
        Err(error) => Err(error.into()),
    });
    Ok(waited.ok().and(seen))
}
