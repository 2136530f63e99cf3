//! Answers in the wrong order, of other requests, cut short, lost: the socket with a peer that follows no
//! rules.

use std::collections::VecDeque;

use backends::netlink::{Batch, Messages, NetlinkError, Received, Socket, Wire};
use nix::errno::Errno;

use super::Target;

/// A case is a script: each datagram after its length (two bytes). Lengths from `ERRORS` on are errors
/// instead.
pub fn target() -> Target {
    let mut seeds = Vec::new();
    for first in [1, 4, 6] {
        for code in [0, -17, -22] {
            let verdicts: Vec<_> =
                (0..3).map(|n| verdict(first + n, if n == 1 { code } else { 0 })).collect();
            seeds.push(datagram(&verdicts.concat()));
            seeds.push(verdicts.iter().flat_map(|v| datagram(v)).collect());
        }
        let object = message(24, 2, first, &[2; 12]);
        let done = message(3, 2, first, &[0; 4]);
        seeds.push([datagram(&object), datagram(&[object, done].concat())].concat());
    }
    seeds.extend((0..4).map(|n| (ERRORS + n).to_le_bytes().to_vec()));
    Target { name: "answers", cases: 250_000, seeds, words: &[], read }
}

const ERRORS: u16 = 0xfffc;

fn read(script: &[u8]) {
    let mut socket = Socket::over(Peer { script: parse(script), ..Peer::default() });
    assert_eq!(socket.apply(&mut requests(3)).len(), 3);
    let mut objects = 0;
    let _ = socket.dump(&mut requests(1), |_| objects += 1);
    let _ = socket.get(&mut requests(1), |message| Some(message.payload.len()));
    if let Err((n, _)) = socket.transaction(&mut requests(5)) {
        assert!(n < 5);
    }
    while let Ok(Received::Messages(messages)) = socket.receive() {
        objects += messages.count();
    }
    assert!(objects <= script.len() / 16);
    // Whatever came before: a correct answer is understood from now on.
    let mut socket = Socket::over(Peer { script: parse(script), ..Peer::default() });
    let _ = socket.apply(&mut requests(2));
    let _ = socket.dump(&mut requests(1), |_| ());
    let mut results = Vec::new();
    for _ in 0..script.len() {
        results = socket.apply(&mut requests(2));
        if !matches!(results[..], [.., Err(NetlinkError::Unknown(_))]) {
            break;
        }
    }
    assert!(!matches!(results[..], [.., Err(NetlinkError::Unknown(_))]) || script.is_empty(), "{results:?}");
}

/// Follows its script. After its end it answers as the kernel does.
#[derive(Default)]
struct Peer {
    script: VecDeque<Result<Vec<u8>, Errno>>,
    sent: Vec<u8>,
}

impl Wire for Peer {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.sent = bytes.to_vec();
        Ok(())
    }

    fn receive(&mut self, buffer: &mut Vec<u8>, wait: bool) -> Result<(), Errno> {
        let next = self.script.pop_front().unwrap_or_else(|| {
            let sent = std::mem::take(&mut self.sent);
            let last = Messages::new(&sent).last().filter(|_| wait).ok_or(Errno::EAGAIN)?;
            Ok([verdict(last.sequence, 0), message(3, 2, last.sequence, &[0; 4])].concat())
        });
        *buffer = next?;
        Ok(())
    }
}

fn parse(mut script: &[u8]) -> VecDeque<Result<Vec<u8>, Errno>> {
    let mut steps = VecDeque::new();
    while let Some((len, rest)) = script.split_first_chunk() {
        let len = u16::from_le_bytes(*len);
        let error = [Errno::EAGAIN, Errno::ENOBUFS, Errno::EMSGSIZE, Errno::EBADF];
        if let Some(error) = len.checked_sub(ERRORS).and_then(|n| error.get(usize::from(n))) {
            steps.push_back(Err(*error));
            script = rest;
        } else {
            let (datagram, after) = rest.split_at(usize::from(len).min(rest.len()));
            steps.push_back(Ok(datagram.to_vec()));
            script = after;
        }
    }
    steps
}

fn datagram(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap_or(0);
    [&len.to_le_bytes(), bytes].concat()
}

fn requests(messages: usize) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..messages {
        batch.message(24, 1, &[0; 12]);
    }
    batch
}

fn verdict(sequence: u32, code: i32) -> Vec<u8> {
    message(2, 0, sequence, &[&code.to_ne_bytes()[..], &[0; 16]].concat())
}

fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(16 + payload.len()).unwrap_or(0);
    let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes()].concat();
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// The bytes of a batch on the wire.
pub(super) fn encoded(mut batch: Batch) -> Vec<u8> {
    #[derive(Default)]
    struct Ear(Vec<u8>);
    impl Wire for &mut Ear {
        fn send(&mut self, bytes: &[u8]) -> Result<(), Errno> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }

        fn receive(&mut self, _: &mut Vec<u8>, _: bool) -> Result<(), Errno> {
            Err(Errno::EAGAIN)
        }
    }
    let mut ear = Ear::default();
    let _ = Socket::over(&mut ear).apply(&mut batch);
    ear.0
}
