//! The little of D-Bus that a few calls of firewalld need: texts in, a text or a truth value out. For the daemon and for
//! the CNI plugin; a library for all of it would bring more code than either has.

use std::env;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection to the system's bus.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    serial: u32,
}

/// A method to call.
#[derive(Debug, Clone, Copy)]
pub struct Method<'a> {
    /// Whose it is: a name on the bus.
    pub destination: &'a str,
    /// The object.
    pub path: &'a str,
    /// The object's interface.
    pub interface: &'a str,
    /// Its name there.
    pub name: &'a str,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Its arguments.
    Return(Vec<u8>),
    /// Name and text of an error.
    Error(String),
}

const SOCKET: &str = "/var/run/dbus/system_bus_socket";
/// Larger than any answer to us (bytes).
const LARGEST: usize = 64 * 1024;

impl Reply {
    /// The text that was returned, empty where it was something else.
    ///
    /// # Errors
    /// The service's words.
    pub fn text(self) -> io::Result<String> {
        match self {
            Self::Return(body) => Ok(text_at(&body, 0).unwrap_or_default()),
            Self::Error(error) => Err(io::Error::other(error)),
        }
    }
}

impl Bus {
    /// Whether there may be a bus.
    pub fn exists() -> bool {
        Path::new(&socket()).exists()
    }

    /// Connects as the user of this process, and introduces us. A bus that does not answer for so long is taken for dead.
    ///
    /// # Errors
    /// There is no bus, or it does not accept us.
    pub fn connect(patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket())?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut bus = Self { stream, serial: 0 };
        bus.introduce()?;
        Ok(bus)
    }

    fn introduce(&mut self) -> io::Result<()> {
        let user = nix::unistd::geteuid().to_string();
        let digits: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {digits}\r\n").as_bytes())?;
        if !self.line()?.starts_with("OK ") {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the bus does not accept us"));
        }
        self.stream.write_all(b"BEGIN\r\n")?;
        let hello = Method { destination: BUS, path: BUS_PATH, interface: BUS, name: "Hello" };
        self.call(&hello, &[]).map(|_| ())
    }

    fn line(&mut self) -> io::Result<String> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while !line.ends_with(b"\r\n") && line.len() < 512 {
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Whether somebody has this name on the bus.
    ///
    /// # Errors
    /// The bus does not answer.
    pub fn has(&mut self, name: &str) -> io::Result<bool> {
        let method = Method { destination: BUS, path: BUS_PATH, interface: BUS, name: "GetNameOwner" };
        self.call(&method, &[name]).map(|reply| matches!(reply, Reply::Return(_)))
    }

    /// Calls a method with texts as its arguments. An error of the service is an answer.
    ///
    /// # Errors
    /// The bus does not answer, or what it says cannot be read.
    pub fn call(&mut self, method: &Method<'_>, arguments: &[&str]) -> io::Result<Reply> {
        self.serial += 1;
        self.stream.write_all(&request(self.serial, method, arguments))?;
        loop {
            if let Some(reply) = self.receive()? {
                return Ok(reply);
            }
        }
    }

    /// The next message; none if it answers nothing of ours.
    fn receive(&mut self) -> io::Result<Option<Reply>> {
        let mut start = [0; 16];
        self.stream.read_exact(&mut start)?;
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "a message of the bus cannot be read");
        let length = |at: usize| Some(u32_at(&start, at)? as usize);
        let (body, fields) = (length(4).ok_or_else(broken)?, length(12).ok_or_else(broken)?);
        if start[0] != LITTLE || body.max(fields) > LARGEST {
            return Err(broken());
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.stream.read_exact(&mut rest)?;
        let (fields, body) = rest.split_at(fields.next_multiple_of(8));
        let fields = Fields::read(fields).ok_or_else(broken)?;
        if fields.answers != Some(self.serial) {
            return Ok(None);
        }
        Ok(match start[1] {
            RETURN => Some(Reply::Return(body.to_vec())),
            ERROR => {
                Some(Reply::Error(format!("{}: {}", fields.error, text_at(body, 0).unwrap_or_default())))
            }
            _ => None,
        })
    }
}

/// Where the system's bus listens.
fn socket() -> String {
    let address = env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
    let path = address.split([';', ',']).find_map(|part| part.strip_prefix("unix:path="));
    path.unwrap_or(SOCKET).to_owned()
}

/// What we read of a message's header.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fields {
    answers: Option<u32>,
    error: String,
}

impl Fields {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (mut fields, mut at) = (Self::default(), 0);
        while at + 4 <= bytes.len() && bytes[at] != 0 {
            let code = bytes[at];
            let kind = *bytes.get(at + 2)?;
            at += 4;
            match kind {
                b's' | b'o' => {
                    let text = text_at(bytes, at)?;
                    at += 4 + text.len() + 1;
                    if code == FIELD_ERROR {
                        fields.error = text;
                    }
                }
                b'g' => at += 1 + usize::from(*bytes.get(at)?) + 1,
                b'u' => {
                    if code == FIELD_ANSWERS {
                        fields.answers = u32_at(bytes, at);
                    }
                    at += 4;
                }
                _ => return None,
            }
            at = at.next_multiple_of(8);
        }
        Some(fields)
    }
}

/// A call as bytes.
fn request(serial: u32, method: &Method<'_>, arguments: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    arguments.iter().for_each(|text| put(&mut body, text));
    let mut fields = Vec::new();
    let texts = [
        (1, b'o', method.path),
        (6, b's', method.destination),
        (2, b's', method.interface),
        (3, b's', method.name),
    ];
    for (code, kind, text) in texts {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind, 0]);
        put(&mut fields, text);
    }
    if let Some(count) = u8::try_from(arguments.len()).ok().filter(|count| *count > 0) {
        pad(&mut fields, 8);
        fields.extend([8, 1, b'g', 0, count]);
        fields.extend(vec![b's'; arguments.len()]);
        fields.push(0);
    }
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut message = vec![LITTLE, CALL, 0, 1];
    message.extend(size(&body));
    message.extend(serial.to_le_bytes());
    message.extend(size(&fields));
    message.extend(&fields);
    pad(&mut message, 8);
    message.extend(&body);
    message
}

fn put(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_le_bytes(*four))
}

fn text_at(bytes: &[u8], at: usize) -> Option<String> {
    let len = u32_at(bytes, at)? as usize;
    bytes.get(at + 4..)?.get(..len).map(|text| String::from_utf8_lossy(text).into_owned())
}

const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
const LITTLE: u8 = b'l';
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const FIELD_ERROR: u8 = 4;
const FIELD_ANSWERS: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_bytes_that_the_protocol_asks_for() {
        let method = Method { destination: "a.b", path: "/", interface: "a.b", name: "M" };
        let bytes = request(7, &method, &["x"]);
        assert_eq!(bytes[..4], [b'l', 1, 0, 1]);
        assert_eq!((u32_at(&bytes, 4), u32_at(&bytes, 8)), (Some(6), Some(7)));
        let fields = u32_at(&bytes, 12).unwrap() as usize;
        assert_eq!(bytes.len(), (16 + fields).next_multiple_of(8) + 6);
        assert_eq!(bytes[bytes.len() - 6..], [1, 0, 0, 0, b'x', 0]);
        assert_eq!(Fields::read(&bytes[16..16 + fields]), Some(Fields::default()));
    }

    #[test]
    fn a_header_cut_anywhere_is_refused_or_says_less_and_is_never_a_crash() {
        let mut whole = vec![FIELD_ANSWERS, 1, b'u', 0, 9, 0, 0, 0, FIELD_ERROR, 1, b's', 0];
        put(&mut whole, "a.Error");
        let read = Fields::read(&whole).unwrap();
        assert_eq!(read, Fields { answers: Some(9), error: "a.Error".into() });
        for cut in 0..whole.len() {
            let _ = Fields::read(&whole[..cut]);
        }
        assert_eq!(Fields::read(&[1, 1, b'v', 0]), None);
        assert_eq!(Fields::read(&[4, 1, b's', 0, 255, 255, 255, 255]), None);
    }
}
