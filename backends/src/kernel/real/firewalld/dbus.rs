//! As much of D-Bus as three questions to one service need: texts in, a text out. A library for all of it would bring
//! more code than the rest of this crate has.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Where the system's bus listens.
const BUS: &str = "/run/dbus/system_bus_socket";
/// firewalld answers at once, or is loading its rules anew, which takes a second or two.
const PATIENCE: Duration = Duration::from_secs(3);
/// No answer to our questions is longer (bytes).
const LONGEST: usize = 1 << 16;

/// An object's interface.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interface<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) name: &'a str,
}

const THE_BUS: Interface<'_> = Interface {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    name: "org.freedesktop.DBus",
};

/// A connection.
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
}

impl Bus {
    /// Whether there may be a bus.
    pub(super) fn exists() -> bool {
        Path::new(BUS).exists()
    }

    /// Connects as the user of this process.
    pub(super) fn connect() -> io::Result<Self> {
        let mut stream = UnixStream::connect(BUS)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let user = nix::unistd::geteuid().to_string();
        let user: String = user.bytes().map(|b| format!("{b:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let answer = line(&mut stream)?;
        if !answer.starts_with("OK") {
            return Err(io::Error::other(format!("the bus says {answer}")));
        }
        stream.write_all(b"BEGIN\r\n")?;
        let mut bus = Self { stream, serial: 0 };
        bus.call(THE_BUS, "Hello", &[])?;
        Ok(bus)
    }

    /// Calls a method; its first result if that is a text. An error is the service's words.
    pub(super) fn call(
        &mut self,
        interface: Interface<'_>,
        method: &str,
        arguments: &[&str],
    ) -> io::Result<String> {
        self.serial += 1;
        self.stream.write_all(&request(self.serial, interface, method, arguments))?;
        loop {
            let message = self.receive()?;
            // Signals and answers to nobody are passed over.
            match message.answer_to {
                Some(serial) if serial == self.serial && message.kind == METHOD_RETURN => {
                    return Ok(message.text);
                }
                Some(serial) if serial == self.serial => return Err(io::Error::other(message.text)),
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> io::Result<Message> {
        let mut fixed = [0; 16];
        self.stream.read_exact(&mut fixed)?;
        let number =
            |at: usize| -> io::Result<usize> { usize::try_from(word(&fixed, at)?).map_err(|_| bad()) };
        let (body, fields) = (number(4)?, number(12)?);
        let rest = fields.next_multiple_of(8).saturating_add(body);
        if rest > LONGEST || fixed[0] != LITTLE_ENDIAN {
            return Err(bad());
        }
        let mut bytes = vec![0; rest];
        self.stream.read_exact(&mut bytes)?;
        let (header, body) = bytes.split_at(fields.next_multiple_of(8));
        let text = if body.is_empty() { String::new() } else { text_at(body, 0).unwrap_or_default() };
        Ok(Message { kind: fixed[1], answer_to: answer_to(&header[..fields]), text })
    }
}

struct Message {
    kind: u8,
    answer_to: Option<u32>,
    text: String,
}

/// The bytes of a call.
fn request(serial: u32, interface: Interface<'_>, method: &str, arguments: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut signature = String::new();
    for argument in arguments {
        pad(&mut body, 4);
        signature.push('s');
        push_text(&mut body, argument);
    }
    let mut fields = Vec::new();
    let texts = [(PATH, b'o', interface.path), (INTERFACE, b's', interface.name), (MEMBER, b's', method)];
    for (code, kind, text) in texts.into_iter().chain([(DESTINATION, b's', interface.destination)]) {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind, 0]);
        push_text(&mut fields, text);
    }
    if !signature.is_empty() {
        pad(&mut fields, 8);
        fields.extend([SIGNATURE, 1, b'g', 0, u8::try_from(signature.len()).unwrap_or(u8::MAX)]);
        fields.extend(signature.as_bytes());
        fields.push(0);
    }
    let mut message = vec![LITTLE_ENDIAN, METHOD_CALL, 0, 1];
    for number in [length(&body), serial, length(&fields)] {
        message.extend(number.to_le_bytes());
    }
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

/// The serial number of the call that a message answers.
fn answer_to(fields: &[u8]) -> Option<u32> {
    let mut at = 0_usize;
    loop {
        at = at.next_multiple_of(8);
        let code = *fields.get(at)?;
        let kind = *fields.get(at + 2)?;
        let value = at + 4;
        at = match kind {
            b'u' if code == REPLY_SERIAL => return word(fields, value).ok(),
            b'u' => value + 4,
            b's' | b'o' => value + 4 + usize::try_from(word(fields, value).ok()?).ok()? + 1,
            b'g' => value + 1 + usize::from(*fields.get(value)?) + 1,
            _ => return None,
        };
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend(length(text.as_bytes()).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

/// Ours are short.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn text_at(bytes: &[u8], at: usize) -> Option<String> {
    let length = usize::try_from(word(bytes, at).ok()?).ok()?;
    let text = bytes.get(at + 4..)?.get(..length)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_le_bytes).ok_or_else(bad)
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

/// One line of the greeting, which is short.
fn line(stream: &mut UnixStream) -> io::Result<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n") && text.len() < 256 {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        text.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

fn bad() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not an answer of D-Bus")
}

const LITTLE_ENDIAN: u8 = b'l';
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
// Fields of a header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_as_the_specification_writes_it() {
        let message = request(7, THE_BUS, "NameHasOwner", &["a.b", "c"]);
        assert_eq!(&message[..4], b"l\x01\x00\x01");
        assert_eq!(word(&message, 4).unwrap(), 14, "body: length, a.b and its zero; length, c and its zero");
        assert_eq!(word(&message, 8).unwrap(), 7);
        assert_eq!(&message[message.len() - 14..], b"\x03\0\0\0a.b\0\x01\0\0\0c\0");
        assert!(message.windows(8).any(|bytes| bytes == b"\x08\x01g\0\x02ss\0"));
    }

    #[test]
    fn an_answer_is_found_by_the_number_of_the_call() {
        // SIGNATURE "s", then REPLY_SERIAL 9, as dbus-daemon sends them.
        let fields = b"\x08\x01g\0\x01s\0\0\x05\x01u\0\x09\0\0\0";
        assert_eq!(answer_to(fields), Some(9));
        assert_eq!(answer_to(&fields[..12]), None, "cut short");
        assert_eq!(answer_to(b""), None);
    }
}
