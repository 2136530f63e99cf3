//! What hostile clients do.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client::{
    Client, GRANT, KEEP_ALIVE, PUT, RANGE, TXN, WATCH, WINDOW, announced, everything, field, framed, number,
    push, put, watch,
};

/// One kind of attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    SmallPuts,
    LargePuts,
    HalfSent,
    UnreadAnswers,
    SortedReads,
    NestedReads,
    NestedComparisons,
    UnreadWatches,
    LongWatches,
    Leases,
    KeepAlives,
    SilentConnections,
    Garbage,
    Resets,
}

/// All of them, with what a reader of the table needs to know.
pub(crate) const ALL: [(Attack, &str); 14] = [
    (Attack::SmallPuts, "small writes, 64 at a time"),
    (Attack::LargePuts, "writes of 1.4 MB, 8 at a time"),
    (Attack::HalfSent, "half-sent messages: 100 streams, 2 MiB announced, 1 MiB sent"),
    (Attack::UnreadAnswers, "100 reads of everything, answers not read"),
    (Attack::SortedReads, "reads of everything, sorted by value"),
    (Attack::NestedReads, "a request of 600 bytes that reads everything 100 times"),
    (Attack::NestedComparisons, "a transaction of 424 KB that compares everything 120 times"),
    (Attack::UnreadWatches, "1,000 watches and values of 1.4 MB, nothing read"),
    (Attack::LongWatches, "600 watches on keys of 64 KB"),
    (Attack::Leases, "leases: 200 at a time, up to 200,000"),
    (Attack::KeepAlives, "keep-alives without end on 50 streams"),
    (Attack::SilentConnections, "50 silent connections"),
    (Attack::Garbage, "bytes that are no HTTP/2"),
    (Attack::Resets, "1,000 streams that are reset at once"),
];

/// How long an attacker holds what it has got.
const HOLD: Duration = Duration::from_secs(2);

impl Attack {
    /// One round of the attack; an error means that the server ended it.
    pub(crate) async fn run(self, to: SocketAddr, who: usize) -> Result<()> {
        match self {
            Self::SmallPuts => many(to, PUT, &put(&format!("hostile/{who}"), &[b'x'; 100]), 64, 10).await,
            Self::LargePuts => {
                many(to, PUT, &put(&format!("hostile/large/{}", who % 8), &large()), 8, 1).await
            }
            Self::HalfSent => half_sent(to).await,
            Self::UnreadAnswers => unread(to, RANGE, &everything(false), 100).await,
            Self::SortedReads => many(to, RANGE, &everything(true), 4, 3).await,
            Self::NestedReads => {
                let read = field(2, &field(1, &everything(false)));
                many(to, TXN, &read.repeat(100), 4, 2).await
            }
            Self::NestedComparisons => many(to, TXN, &comparisons(), 4, 1).await,
            Self::UnreadWatches => unread_watches(to, who).await,
            Self::LongWatches => long_watches(to).await,
            Self::Leases => many(to, GRANT, &number(1, 60), 200, 10).await,
            Self::KeepAlives => keep_alives(to).await,
            Self::SilentConnections => silent(to, 50).await,
            Self::Garbage => garbage(to).await,
            Self::Resets => resets(to).await,
        }
    }
}

pub(crate) fn large() -> Vec<u8> {
    vec![b'x'; 1_400_000]
}

/// The same request, several at a time, some times; answers are read.
async fn many(to: SocketAddr, path: &str, message: &[u8], at_once: usize, times: usize) -> Result<()> {
    let mut client = Client::connect(to, WINDOW).await?;
    for _ in 0..times {
        let mut streams = Vec::new();
        let mut answers = Vec::new();
        for _ in 0..at_once {
            let (answer, mut stream) = client.begin(path).await?;
            push(&mut stream, framed(message), HOLD).await?;
            stream.send_data(Bytes::new(), true)?;
            answers.push(answer);
            streams.push(stream);
        }
        for answer in answers {
            let Ok(answer) = tokio::time::timeout(HOLD, answer).await else { break };
            let mut body = answer?.into_body();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len())?;
            }
        }
    }
    Ok(())
}

async fn half_sent(to: SocketAddr) -> Result<()> {
    let mut client = Client::connect(to, WINDOW).await?;
    let mut held = Vec::new();
    for _ in 0..100 {
        let (answer, mut stream) = client.begin(PUT).await?;
        let half = [&announced(2 << 20)[..], &vec![7; 1 << 20]].concat();
        if push(&mut stream, half.into(), HOLD / 4).await.is_err() {
            break;
        }
        held.push((answer, stream));
    }
    tokio::time::sleep(HOLD).await;
    Ok(())
}

/// Answers for which the client gives no window.
async fn unread(to: SocketAddr, path: &str, message: &[u8], count: usize) -> Result<()> {
    let mut client = Client::connect(to, 0).await?;
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(client.send(path, message).await?);
    }
    tokio::time::sleep(HOLD).await;
    Ok(())
}

/// As many comparisons as a transaction may have, each with the value of every key.
fn comparisons() -> Vec<u8> {
    // Target 3 is the value; result 3 is "not equal", which holds for every key.
    let compare = [number(1, 3), number(2, 3), everything_compared(), field(7, &[b'y'; 3500])].concat();
    field(1, &compare).repeat(120)
}

fn everything_compared() -> Vec<u8> {
    // The end of a range is field 64 here.
    [field(3, &[0]), vec![0x82, 0x04, 1, 0]].concat()
}

async fn unread_watches(to: SocketAddr, who: usize) -> Result<()> {
    let mut client = Client::connect(to, 0).await?;
    let mut held = Vec::new();
    for _ in 0..8 {
        let (answer, mut stream) = client.begin(WATCH).await?;
        let message = framed(&watch(&[0], &[0])).repeat(125);
        push(&mut stream, message.into(), HOLD).await?;
        held.push((answer, stream));
    }
    let mut writer = Client::connect(to, WINDOW).await?;
    for _ in 0..3 {
        let (answer, mut stream) = writer.begin(PUT).await?;
        push(&mut stream, framed(&put(&format!("hostile/large/{}", who % 8), &large())), HOLD).await?;
        stream.send_data(Bytes::new(), true)?;
        let _ = tokio::time::timeout(HOLD, answer).await;
    }
    tokio::time::sleep(HOLD).await;
    Ok(())
}

async fn long_watches(to: SocketAddr) -> Result<()> {
    let mut client = Client::connect(to, WINDOW).await?;
    let mut held = Vec::new();
    for _ in 0..6 {
        let (answer, mut stream) = client.begin(WATCH).await?;
        for _ in 0..100 {
            push(&mut stream, framed(&watch(&[b'k'; 64_000], &[])), HOLD).await?;
        }
        held.push((answer, stream));
    }
    tokio::time::sleep(HOLD).await;
    Ok(())
}

async fn keep_alives(to: SocketAddr) -> Result<()> {
    let mut client = Client::connect(to, WINDOW).await?;
    let mut held = Vec::new();
    for _ in 0..50 {
        let (answer, mut stream) = client.begin(KEEP_ALIVE).await?;
        push(&mut stream, framed(&number(1, 7)).repeat(1000).into(), HOLD).await?;
        held.push((answer, stream));
    }
    tokio::time::sleep(HOLD).await;
    Ok(())
}

pub(crate) async fn silent(to: SocketAddr, count: usize) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(TcpStream::connect(to).await?);
    }
    tokio::time::sleep(HOLD).await;
    Ok(())
}

async fn garbage(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(&vec![0xff; 1 << 20]).await?;
    tokio::time::sleep(HOLD / 10).await;
    Ok(())
}

async fn resets(to: SocketAddr) -> Result<()> {
    let mut client = Client::connect(to, WINDOW).await?;
    for _ in 0..1000 {
        let (_, mut stream) = client.begin(RANGE).await?;
        stream.send_data(framed(&everything(false)), true)?;
        stream.send_reset(h2::Reason::CANCEL);
    }
    Ok(())
}
