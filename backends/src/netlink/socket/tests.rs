use std::collections::VecDeque;

use super::*;
use crate::netlink::link::{DUMP, REQUEST};

/// A peer that sends the answers of its script, then none.
#[derive(Default)]
struct Script(VecDeque<Result<Vec<u8>, Errno>>);

impl Wire for Script {
    fn send(&mut self, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }

    fn receive(&mut self, buffer: &mut Vec<u8>, _: bool) -> Result<(), Errno> {
        let bytes = self.0.pop_front().unwrap_or(Err(Errno::EAGAIN))?;
        buffer.clear();
        buffer.extend_from_slice(&bytes);
        Ok(())
    }
}

fn socket(script: impl IntoIterator<Item = Result<Vec<u8>, Errno>>) -> Socket<Script> {
    Socket::over(Script(script.into_iter().collect()))
}

fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut batch = Batch::new();
    batch.message(kind, flags, payload);
    batch.seal_for_test(sequence)
}

/// What the kernel answers to message `sequence`: 0 or a negative error number, with its words.
fn verdict(sequence: u32, code: i32, words: Option<&str>) -> Vec<u8> {
    let mut batch = Batch::new();
    batch.message(NLMSG_ERROR, 0, &[&code.to_ne_bytes()[..], &[0; HEADER]].concat());
    if let Some(words) = words {
        batch.attr_str(NLMSGERR_ATTR_MSG, words);
    }
    batch.seal_for_test(sequence)
}

fn done(sequence: u32, code: i32) -> Vec<u8> {
    message(NLMSG_DONE, 2, sequence, &code.to_ne_bytes())
}

fn object(sequence: u32, flags: u16) -> Vec<u8> {
    message(24, flags, sequence, &[2; 12])
}

fn batch(messages: usize) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..messages {
        batch.message(24, REQUEST, &[0; 12]);
    }
    batch
}

fn dump_of(socket: &mut Socket<Script>) -> (Result<Dump, NetlinkError>, usize) {
    let mut request = Batch::new();
    request.message(26, REQUEST | DUMP, &[0; 12]);
    let mut objects = 0;
    (socket.dump(&mut request, |_| objects += 1), objects)
}

fn refused(errno: Errno) -> Result<(), NetlinkError> {
    Err(NetlinkError::Refused { errno, text: None })
}

fn lost<T>(errno: Errno) -> Result<T, NetlinkError> {
    Err(NetlinkError::Unknown(errno))
}

#[test]
fn a_refusal_in_any_place_of_a_batch_is_filed_under_its_own_message() {
    for refusals in 0..1u32 << 6 {
        let no = |n: u32| refusals >> n & 1 == 1;
        let answers = (0..6).filter(|n| no(*n)).map(|n| verdict(n + 1, -17, None));
        let last = (!no(5)).then(|| verdict(6, 0, None));
        let all: Vec<_> = answers.chain(last).collect();
        let want: Vec<_> = (0..6).map(|n| if no(n) { refused(Errno::EEXIST) } else { Ok(()) }).collect();
        let one_by_one = socket(all.iter().cloned().map(Ok)).apply(&mut batch(6));
        let together = socket([Ok(all.concat())]).apply(&mut batch(6));
        assert_eq!((&one_by_one, &together), (&want, &want), "{refusals:06b}");
    }
}

#[test]
fn the_kernels_words_come_along() {
    let results = socket([Ok(verdict(1, -22, Some("no such thing")))]).apply(&mut batch(1));
    assert_eq!(
        results,
        [Err(NetlinkError::Refused { errno: Errno::EINVAL, text: Some("no such thing".to_owned()) })]
    );
}

#[test]
fn answers_out_of_order_and_answers_to_nobody_end_up_where_they_belong() {
    let script = [
        object(0, 0),
        verdict(77, -1, None),
        verdict(3, -17, None),
        verdict(2, 0, None),
        verdict(0, -1, None),
        verdict(1, -3, None),
        verdict(4, 0, None),
    ];
    let results = socket(script.map(Ok)).apply(&mut batch(4));
    assert_eq!(results, [refused(Errno::ESRCH), Ok(()), refused(Errno::EEXIST), Ok(())]);
}

#[test]
fn without_its_last_answer_a_whole_range_is_unknown_and_the_next_is_not() {
    let silent =
        [Ok(verdict(3, -17, None)), Err(Errno::EAGAIN), Err(Errno::EAGAIN), Ok(verdict(201, 0, None))];
    let full =
        [Err(Errno::ENOBUFS), Ok(verdict(199, -17, None)), Err(Errno::EAGAIN), Ok(verdict(201, 0, None))];
    for (script, errno) in [(Vec::from(silent), Errno::EAGAIN), (Vec::from(full), Errno::ENOBUFS)] {
        let results = socket(script).apply(&mut batch(201));
        assert!(results[..200].iter().all(|r| *r == lost(errno)));
        assert_eq!(results[200], Ok(()), "what the first range left is read away");
    }
}

#[test]
fn an_answer_too_short_for_its_verdict_is_no_yes() {
    for cut in 0..4 {
        let short = message(NLMSG_ERROR, 0, 1, &[0; 4][..cut]);
        // The builder pads to four bytes, the kernel would not.
        let mut short = short[..HEADER + cut].to_vec();
        short[0] = u8::try_from(short.len()).unwrap();
        assert_eq!(socket([Ok(short)]).apply(&mut batch(1)), [lost(Errno::EBADMSG)]);
    }
}

#[test]
fn a_dump_that_was_cut_short_anywhere_is_never_a_whole_one() {
    let whole = [object(1, 2), object(1, 2), done(1, 0)].concat();
    let (end, objects) = dump_of(&mut socket([Ok(whole.clone())]));
    assert_eq!((end, objects), (Ok(Dump { interrupted: false }), 2));
    for cut in 0..whole.len() {
        let (end, _) = dump_of(&mut socket([Ok(whole[..cut].to_vec())]));
        assert!(matches!(end, Err(NetlinkError::Unknown(_))), "cut at {cut}: {end:?}");
    }
}

#[test]
fn a_dump_says_how_it_ended() {
    let cases = [
        (vec![object(1, 2 | NLM_F_DUMP_INTR), done(1, 0)], Ok(Dump { interrupted: true }), 1),
        (
            vec![object(1, 2), message(NLMSG_DONE, 2 | NLM_F_DUMP_INTR, 1, &[0; 4])],
            Ok(Dump { interrupted: true }),
            1,
        ),
        (vec![object(1, 2), done(1, -105)], refused(Errno::ENOBUFS).map(|()| Dump { interrupted: false }), 1),
        (vec![verdict(1, -16, None)], refused(Errno::EBUSY).map(|()| Dump { interrupted: false }), 0),
        (vec![object(9, 2), done(9, 0), object(1, 2), done(1, 0)], Ok(Dump { interrupted: false }), 1),
        (vec![object(1, 2)], lost(Errno::EAGAIN), 1),
    ];
    for (script, end, objects) in cases {
        assert_eq!(dump_of(&mut socket(script.into_iter().map(Ok))), (end, objects));
    }
}

#[test]
fn what_is_left_of_a_dump_that_was_given_up_is_read_before_the_next_request() {
    let first = [Ok(object(1, 2)), Err(Errno::ENOBUFS)];
    let rest = [Ok(object(1, 2)), Ok(done(1, 0)), Err(Errno::EAGAIN)];
    let second = [Ok(object(2, 2)), Ok(done(2, 0))];
    let mut socket = socket(first.into_iter().chain(rest).chain(second));
    assert_eq!(dump_of(&mut socket), (lost(Errno::ENOBUFS), 1));
    assert_eq!(dump_of(&mut socket), (Ok(Dump { interrupted: false }), 1));
    assert!(socket.wire.0.is_empty());
}

#[test]
fn the_first_verdict_of_a_transaction_is_the_verdict() {
    for (n, code) in [(0, -1), (2, -2), (4, -22)] {
        let mut socket = socket([Ok(verdict(1 + n, code, None)), Ok(verdict(5, -22, None))]);
        let (at, error) = socket.transaction(&mut batch(5)).unwrap_err();
        assert_eq!((at, error.errno()), (n as usize, Errno::from_raw(-code)));
        assert_eq!(socket.apply(&mut batch(1)), [lost(Errno::EAGAIN)], "and the others answer nothing else");
    }
    assert_eq!(socket([Ok(verdict(4, 0, None))]).transaction(&mut batch(5)), Ok(()));
    assert_eq!(socket([]).transaction(&mut batch(5)), Err((0, NetlinkError::Unknown(Errno::EAGAIN))));
}

#[test]
fn a_peer_that_never_answers_and_never_stops_is_given_up() {
    struct Babbler(usize);
    impl Wire for Babbler {
        fn send(&mut self, _: &[u8]) -> Result<(), Errno> {
            Ok(())
        }

        fn receive(&mut self, buffer: &mut Vec<u8>, _: bool) -> Result<(), Errno> {
            self.0 += 1;
            *buffer = object(0, 0);
            Ok(())
        }
    }
    let mut socket = Socket::over(Babbler(0));
    assert_eq!(socket.apply(&mut batch(1)), [lost(Errno::EPROTO)]);
    socket.apply(&mut batch(1));
    assert_eq!(socket.wire.0, 3 * STRANGERS);
}

#[test]
fn notifications_that_were_lost_or_did_not_fit_are_an_overrun() {
    for errno in [Errno::ENOBUFS, Errno::EMSGSIZE] {
        assert!(matches!(socket([Err(errno)]).receive(), Ok(Received::Overrun)));
    }
    assert!(matches!(socket([]).receive(), Ok(Received::Empty)));
    assert!(matches!(socket([Err(Errno::EBADF)]).receive(), Err(NetlinkError::Socket(Errno::EBADF))));
}

#[test]
fn a_datagram_larger_than_the_buffer_is_said_to_be_and_fits_the_next_time() {
    let mut socket = Socket::route().unwrap();
    socket.buffer = Vec::with_capacity(64);
    let mut links = 0;
    let mut dump = || socket.dump(&mut crate::netlink::link::dump_links(None), |_| links += 1);
    assert_eq!(dump(), lost(Errno::EMSGSIZE));
    assert_eq!(dump(), Ok(Dump { interrupted: false }));
    assert!(links > 0);
}
